"""Times LeRobot's ACT policy (arXiv:2304.13705) on the work that ours is timed on, in another interpreter.

    /path/to/lerobot/bin/python experiments/benchmarks/lerobot_peer.py '{"image_size": 96, ...}'

LeRobot's requirements clash with ours, so `peers` runs this very file by an interpreter that has LeRobot and
reads the JSON that it prints. ACT with a width of 256 is the smallest policy that LeRobot offers; most of
its weights are a ResNet18, which starts from noise here, as nothing is downloaded. Random numbers stand for
data. As a program this file imports none of our modules.
"""

import importlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What both policies do: their inputs, outputs, batch and threads."""

    image_size: int  # pixels a side
    num_cameras: int
    state_dim: int
    action_dim: int
    action_horizon: int  # control periods
    batch_size: int
    num_threads: int
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerTimes:
    """What was measured of the peer."""

    name: str
    parameters: int
    train_step_s: float  # median: forward, backward, clipping, AdamW
    chunk_s: float  # median: one observation to one action chunk


def _batch(torch: Any, work: Work, size: int) -> dict[str, Any]:
    cameras = {
        f"observation.images.camera{i}": torch.rand(size, 3, work.image_size, work.image_size)
        for i in range(work.num_cameras)
    }
    return {
        **cameras,
        "observation.state": torch.randn(size, work.state_dim),
        "action": torch.randn(size, work.action_horizon, work.action_dim),
        "action_is_pad": torch.zeros(size, work.action_horizon, dtype=torch.bool),
    }


def _build(work: Work) -> Any:
    """Return ACT at width 256 with features like ours."""
    types = importlib.import_module("lerobot.configs.types")
    image = types.PolicyFeature(type=types.FeatureType.VISUAL, shape=(3, work.image_size, work.image_size))
    config = importlib.import_module("lerobot.policies.act.configuration_act").ACTConfig(
        input_features={
            **{f"observation.images.camera{i}": image for i in range(work.num_cameras)},
            "observation.state": types.PolicyFeature(type=types.FeatureType.STATE, shape=(work.state_dim,)),
        },
        output_features={
            "action": types.PolicyFeature(type=types.FeatureType.ACTION, shape=(work.action_dim,))
        },
        chunk_size=work.action_horizon,
        n_action_steps=work.action_horizon,
        dim_model=256,
        n_heads=4,
        dim_feedforward=1024,
        pretrained_backbone_weights=None,
        device="cpu",
    )
    return importlib.import_module("lerobot.policies.act.modeling_act").ACTPolicy(config)


def _median_s(step: Any, repeats: int) -> float:
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def time_lerobot(work: Work) -> PeerTimes:
    """Time ACT in this interpreter, which must have LeRobot."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(work.num_threads)
    torch.manual_seed(0)
    policy = _build(work)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    batch, one = _batch(torch, work, work.batch_size), _batch(torch, work, 1)

    def step() -> None:
        loss, _ = policy.forward(dict(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    policy.train()
    train_step_s = _median_s(step, work.repeats)
    policy.eval()
    with torch.inference_mode():
        chunk_s = _median_s(lambda: policy.predict_action_chunk(dict(one)), work.repeats)
    version = importlib.import_module("importlib.metadata").version("lerobot")
    return PeerTimes(
        name=f"lerobot {version} ACT, width 256",
        parameters=sum(p.numel() for p in policy.parameters()),
        train_step_s=train_step_s,
        chunk_s=chunk_s,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(time_lerobot(Work(**json.loads(sys.argv[1]))))))
