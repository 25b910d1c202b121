import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.data.sampler import EpochSampler

SIZES = st.integers(1, 50)


@given(num_windows=SIZES, batch_size=st.integers(1, 20), world=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=50)
def test_ranks_together_see_every_window_once_an_epoch(num_windows, batch_size, world, seed):
    ranks = [
        EpochSampler(num_windows=num_windows, batch_size=batch_size, seed=seed, rank=rank, world_size=world)
        for rank in range(world)
    ]
    stream = []
    while len(stream) < 2 * num_windows:
        batches = [rank.next_batch() for rank in ranks]
        assert all(batch.shape == (batch_size,) for batch in batches)
        stream += np.stack(batches, axis=1).ravel().tolist()
        assert all(rank.state() == ranks[0].state() for rank in ranks)
    everything = list(range(num_windows))
    assert sorted(stream[:num_windows]) == sorted(stream[num_windows : 2 * num_windows]) == everything


@given(num_windows=SIZES, before=st.integers(0, 12), seed=st.integers(0, 9), balanced=st.booleans())
@settings(max_examples=50)
def test_it_resumes_exactly(num_windows, before, seed, balanced):
    groups = np.arange(num_windows) % 3 if balanced else None

    def new():
        return EpochSampler(num_windows=num_windows, batch_size=7, seed=seed, groups=groups)

    original, resumed = new(), new()
    for _ in range(before):
        original.next_batch()
    resumed.load_state(json.loads(json.dumps(original.state())))
    for _ in range(5):
        np.testing.assert_array_equal(original.next_batch(), resumed.next_batch())


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=5), seed=st.integers(0, 9))
@settings(max_examples=50)
def test_groups_get_equal_shares_of_an_epoch(counts, seed):
    groups = np.repeat(np.arange(len(counts)), counts)
    sampler = EpochSampler(num_windows=len(groups), batch_size=len(groups), seed=seed, groups=groups)
    for _ in range(2):
        drawn = np.bincount(groups[sampler.next_batch()], minlength=len(counts))
        assert drawn.max() - drawn.min() <= 1


def test_epochs_and_seeds_differ():
    def epochs(seed):
        sampler = EpochSampler(num_windows=30, batch_size=30, seed=seed)
        return [sampler.next_batch().tolist() for _ in range(2)]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1)[0] != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_windows": 0}, "from 0 windows.*held out"),
        ({"batch_size": 0}, "batches of 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in"),
        ({"groups": np.zeros(3, np.int64)}, "groups has 3 entries for 10 windows"),
    ],
)
def test_impossible_samplers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**({"num_windows": 10, "batch_size": 2, "seed": 0} | arguments))


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_windows": 11}, {"position": 10}])
def test_states_of_other_runs_are_refused(change):
    sampler = EpochSampler(num_windows=10, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="sampler state has"):
        sampler.load_state(sampler.state() | change)
