"""What a rollout executes of predicted chunks."""

import numpy as np
import pytest

from envs.chunk_plan import ChunkPlan


def chunk(*values):
    return np.array(values, np.float32)[:, None]


def test_without_ensembling_the_newest_chunk_is_executed():
    plan = ChunkPlan(count=2, ensemble_decay=None)
    assert plan.add(chunk(1, 2, 3, 4)).ravel().tolist() == [1, 2]
    assert plan.add(chunk(5, 6, 7, 8)).ravel().tolist() == [5, 6]
    assert plan.sent(1).ravel().tolist() == [1, 2, 5, 6]


def test_ensembling_averages_the_chunks_that_cover_a_period():
    plan = ChunkPlan(count=2, ensemble_decay=0.0)
    assert plan.add(chunk(1, 2, 3, 4)).ravel().tolist() == [1, 2]
    assert plan.add(chunk(5, 6, 7, 8)).ravel().tolist() == [4, 5]  # with 3 and 4
    assert plan.add(chunk(9, 10, 11, 12)).ravel().tolist() == [8, 9]  # the first chunk is over


def test_the_oldest_counts_most():
    plan = ChunkPlan(count=1, ensemble_decay=1.0)
    plan.add(chunk(0, 0, 0))
    mean = plan.add(chunk(1, 1, 1)).item()
    assert mean == pytest.approx(np.exp(-1) / (1 + np.exp(-1)))


def test_an_episode_without_actions_has_none_of_the_right_width():
    assert ChunkPlan(count=2, ensemble_decay=None).sent(7).shape == (0, 7)
