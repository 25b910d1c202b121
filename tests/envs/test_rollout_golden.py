"""Episodes come out bit for bit as they did when the golden file was written.

The file holds the actions that `run_episodes` executed before simulation and robots shared one frame history
and one chunk schedule. To write it anew after a change that is meant to change episodes:

    PYTHONPATH=.:tests/envs python tests/envs/test_rollout_golden.py
"""

from pathlib import Path

import numpy as np
import pytest
from fake_env import FACTORY, PointPolicy

from envs.rollout import EpisodeRequest, run_episodes

GOLDEN = Path(__file__).parents[1] / "golden" / "rollout_actions.npz"
SETTINGS = {
    "newest": {"execute_horizon": 3},
    "whole chunk": {"execute_horizon": 8},
    "mean": {"execute_horizon": 2, "ensemble_decay": 0.0},
    "oldest most": {"execute_horizon": 1, "ensemble_decay": 0.5},
}


class WaveringPolicy(PointPolicy):
    """Changes its mind with what it sees, so that no two chunks agree about a period."""

    def chunk(self, observation):
        actions = super().chunk(observation)
        seen = [*observation.state, *(frame[0, 0, 2] / 60.0 for frame in observation.images["side"])]
        waver = np.sin(37.0 * np.sum(seen) + np.arange(actions.size)).reshape(actions.shape)
        return (actions + 0.02 * waver).astype(np.float32)


def episodes(setting):
    """Return the actions of a few episodes, by a name for each."""
    wanted = [EpisodeRequest(task="point", env_config={"task": "point"}, seed=seed) for seed in range(3)]
    policy = WaveringPolicy(frame_offsets=(4, 1, 0))
    results = run_episodes(policy, wanted, num_workers=1, env_factory=FACTORY, **SETTINGS[setting])
    return {f"{setting}, seed {result.request.seed}": result.actions for result in results}


@pytest.mark.parametrize("setting", SETTINGS)
def test_episodes_are_those_of_the_golden_file(setting):
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for name, actions in episodes(setting).items():
            assert actions.dtype == golden[name].dtype
            np.testing.assert_array_equal(actions, golden[name], err_msg=name)


if __name__ == "__main__":
    np.savez_compressed(
        GOLDEN, **{name: one for setting in SETTINGS for name, one in episodes(setting).items()}
    )
