"""Golden losses of every recipe's model and every head on synthetic samples: refactors must not move them.

To renew: delete tests/golden/recipe_losses.json and run this file twice; say in the commit why they moved.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from experiments.config import schema
from experiments.training_parts import build_model, build_processor
from vla.interface import Moments
from vla.processing.moments import Demonstrations
from vla.processing.state import StateInput
from vla.spec import CameraSpec, Channel, RobotSpec
from vla.training.batches import BatchMaker

GOLDEN = Path(__file__).parents[1] / "golden" / "recipe_losses.json"
RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))
HEADS = {"autoregressive": "quantile", "fast": "fast", "flow": "continuous"}
CASES = {
    **{recipe: ["train", f"experiment={recipe}"] for recipe in RECIPES},
    "quickstart": ["quickstart"],
    **{head: ["train", f"model/head={head}", f"codec={codec}"] for head, codec in HEADS.items()},
    **{
        f"{head}, committed": [
            "train",
            f"model/head={head}",
            f"codec={codec}",
            "processor.max_committed=4",
            "processor.frame_offsets=[2,0]",
        ]
        for head, codec in {"parallel": "uniform", **HEADS}.items()
    },
}
INSTRUCTIONS = ("lift the red cube", "push the blue ball to the mat", "reach")


class SyntheticSource:
    """Random samples of a robot with the cameras of a run."""

    def __init__(self, run: schema.TrainRun) -> None:
        size = run.env["image_size"]
        self.horizon, self.offsets = run.processor.action_horizon, run.processor.frame_offsets
        self.spec = RobotSpec(
            name="synthetic",
            cameras=tuple(CameraSpec(name=name, height=size, width=size) for name in run.env["cameras"]),
            state=tuple(Channel(name=f"s{i}", unit="m", low=-1.0, high=1.0) for i in range(6)),
            action=tuple(Channel(name=f"a{i}", unit="m", low=-1.0, high=1.0) for i in range(7)),
            control_hz=20.0,
            action_convention="end_effector_delta",
            gripper_sign="positive_opens",
        )
        rng = np.random.default_rng(0)
        walk = np.cumsum(rng.normal(0, 0.2, size=(64, self.horizon, 7)), axis=1)
        self.chunks = np.tanh(walk).astype(np.float32)
        self.states = rng.uniform(-1, 1, size=(64, 6)).astype(np.float32)

    num_samples, groups = 64, np.zeros(64, dtype=np.int64)

    def describe(self) -> str:
        return "synthetic samples"

    def to_json(self) -> dict:
        return {}

    def fingerprints(self) -> list[str]:
        return []

    def observations(self, indices) -> list:
        raise NotImplementedError("losses need batches alone")

    def demonstrations(self) -> Demonstrations:
        return Demonstrations(
            robot_spec=self.spec,
            states=self.states,
            actions=self.chunks[:, 0],
            chunks=self.chunks,
            instructions=INSTRUCTIONS,
        )

    def batch(self, indices, *, processor, requests, seed):
        rng = np.random.default_rng(5)
        size = self.spec.cameras[0].height
        shape = (len(indices), len(self.offsets), size, size, 3)
        num_committed = np.arange(len(indices)) % (processor.max_committed + 1)
        moments = Moments(
            images={name: rng.integers(0, 256, shape, dtype=np.uint8) for name in self.spec.camera_names},
            state=self.states[indices],
            instructions=[INSTRUCTIONS[i % 3] for i in indices],
            committed=self.chunks[indices],
            num_committed=num_committed.astype(np.int64),
        )
        valid = np.ones((len(indices), self.horizon), dtype=bool)
        valid[0, -1] = False
        batch = {**processor.encode(moments), **processor.codec.encode(self.chunks[indices], valid)}
        if "later_states" in requests:
            (encoder,) = (one for one in processor.inputs.values() if isinstance(one, StateInput))
            later = np.stack([self.states[indices]] * len(requests["later_states"]), axis=1)
            batch["later_states"] = encoder.normalize(-later)
        return {**batch, "valid": valid}


def losses_of(arguments: list[str]) -> list[float]:
    program, *overrides = arguments
    schema.register(program)
    with initialize_config_module("conf", version_base="1.3"):
        run = schema.typed(compose(program, overrides), schema.ROOTS.get(program))
    source = SyntheticSource(run)
    processor = build_processor(run, source)
    model = build_model(run.model, processor, seed=0)
    noise = model.noise_specs(training=True)
    maker = BatchMaker(source, processor=processor, requests=model.requests(), noise=noise, seed=0)
    batch = maker.make(np.arange(4), number=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.loss(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(round(float(loss.detach()), 6))
    return losses


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    if not GOLDEN.exists():
        found = {case: losses_of(arguments) for case, arguments in CASES.items()}
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} did not exist and was written; look at it and run again")
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_golden_ones(case: str, golden: dict[str, list[float]]) -> None:
    np.testing.assert_allclose(losses_of(CASES[case]), golden[case], rtol=2e-4)


def test_every_golden_loss_has_its_case(golden: dict[str, list[float]]) -> None:
    assert set(golden) == set(CASES)
