"""The vla-eval harness of PyPI against our server, run by hand in an environment of its own.

    python -m experiments.serve bundle=tests/golden/bundle_v1 port=8765     # here
    pip install vla-eval==0.8.0                                             # there
    python tests/conformance/vla_eval_peer.py 8765

A benchmark whose observations are the bundle's golden samples, as PNG as the harness sends them; an episode
succeeds if every action is the golden one.
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import vla_eval
from vla_eval.benchmarks.base import StepBenchmark, StepResult

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle_v1" / "golden.npz"
EPISODES = 3


class GoldenBenchmark(StepBenchmark):
    """Shows sample after sample and compares the first action of each answer."""

    render_backends: ClassVar[frozenset[str]] = frozenset({"gpu", "cpu"})

    def __init__(self, send_state: bool = False) -> None:
        super().__init__()
        self._send_state = send_state  # the server's hello asks for it
        with np.load(GOLDEN) as golden:
            self._golden = {name: golden[name] for name in golden.files}
        self._at, self._num_equal = 0, 0

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": "golden", "suite": "golden"}]

    def reset(self, task: dict[str, Any]) -> int:
        self._at, self._num_equal = 0, 0
        return 0

    def make_obs(self, raw_obs: int, task: dict[str, Any]) -> dict[str, Any]:
        observation = {
            "images": {name: self._golden[f"image.{name}"][raw_obs, 0] for name in ("exterior", "wrist")},
            "task_description": str(self._golden["instruction"][raw_obs]),
        }
        return {**observation, "state": self._golden["state"][raw_obs]} if self._send_state else observation

    def step(self, action: dict[str, Any]) -> StepResult:
        self._num_equal += np.array_equal(action["actions"], self._golden["actions"][self._at][0])
        self._at += 1
        done = self._at == len(self._golden["state"])
        return StepResult(obs=self._at, reward=0.0, done=done, info={})

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": self._num_equal == len(self._golden["state"])}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": 100}

    def get_action_spec(self) -> dict[str, Any]:
        return {}

    def get_observation_spec(self) -> dict[str, Any]:
        return {}


def main(port: int) -> None:
    sys.modules["vla_eval_peer"] = sys.modules["__main__"]
    config = {
        "benchmarks": [{"benchmark": "vla_eval_peer:GoldenBenchmark", "episodes_per_task": EPISODES}],
    }
    (result,) = vla_eval.run(config, server_url=f"ws://127.0.0.1:{port}/vla-eval", no_save=True)
    episodes = [episode for task in result["tasks"] for episode in task["episodes"]]
    successes = sum(bool(episode["metrics"]["success"]) for episode in episodes)
    print(f"vla-eval: {successes} of {len(episodes)} episodes with every action equal")
    if (successes, len(episodes)) != (EPISODES, EPISODES):
        raise SystemExit(f"does not conform: {result}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
