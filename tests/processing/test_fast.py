import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.interface import DecodeError
from vla.processing.codec import ActionCodec
from vla.processing.fast import CLIP, PADDING, FastCodec, _fit_merges, dct_matrix

LOW = np.array([-0.025, -0.1, 0.0], dtype=np.float32)
HIGH = np.array([0.025, 0.3, 1.0], dtype=np.float32)
HORIZON = 8
NUM_SYMBOLS = HORIZON * 3


def ids_per_chunk(codec: FastCodec, chunks: np.ndarray) -> float:
    ids = codec.encode(chunks, np.ones(chunks.shape[:2], dtype=np.bool_))["action_ids"]
    return float((ids != PADDING).sum(axis=1).mean())


def demonstrations(*, num_chunks: int = 1000, horizon: int = HORIZON) -> np.ndarray:
    """Return chunks of a smooth axis, an axis that never turns and a gripper that closes once or never."""
    generator = np.random.default_rng(0)
    phase, speed = generator.uniform(0, 2 * np.pi, (2, num_chunks, 1))
    steps = np.arange(horizon)
    x = 0.015 * np.sin(phase + 0.1 * speed * steps)
    gripper = generator.integers(0, 3 * horizon, (num_chunks, 1)) > steps
    return np.stack([x, np.full_like(x, 0.05), gripper], axis=2).astype(np.float32)


def fitted(*, horizon: int = HORIZON, scale: float = 10.0, vocab_size: int = 400) -> FastCodec:
    chunks = demonstrations(horizon=horizon)
    return FastCodec.fit(
        chunks.reshape(-1, 3), chunks, low=LOW, high=HIGH, scale=scale, vocab_size=vocab_size
    )


@pytest.fixture(scope="module")
def codec() -> FastCodec:
    return fitted()


def ids_of(codec: FastCodec, actions: np.ndarray) -> np.ndarray:
    return codec.encode(actions, np.ones(actions.shape[:2], dtype=np.bool_))["action_ids"]


def round_trip(codec: FastCodec, actions: np.ndarray) -> np.ndarray:
    return codec.decode({"action_ids": ids_of(codec, actions)})


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_the_transform_is_orthonormal_and_starts_with_the_mean(length: int) -> None:
    matrix = dct_matrix(length)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)
    np.testing.assert_allclose(matrix[0], 1 / np.sqrt(length))


@pytest.mark.parametrize("scale", [5.0, 10.0, 40.0])
@pytest.mark.parametrize("horizon", [1, 2, 8])
def test_the_round_trip_error_is_that_of_rounding_the_coefficients(horizon: int, scale: float) -> None:
    """Each coefficient moves by at most 1 / (2 scale), and the transform keeps sums of squares."""
    codec, actions = fitted(horizon=horizon, scale=scale), demonstrations(horizon=horizon)

    error = (round_trip(codec, actions) - actions) / np.where(codec.half_width > 0, codec.half_width, 1.0)

    squared = np.square(error).sum(axis=1)
    assert (squared <= horizon / (4 * scale**2) + 1e-6).all(), f"worst per dimension {squared.max(axis=0)}"
    assert np.abs(error).max() <= np.sqrt(horizon) / (2 * scale) + 1e-6
    assert np.abs(error[..., 1]).max() <= 1e-6, "the axis that never turns"


@pytest.mark.parametrize("scale", [10.0, 40.0])
def test_a_gripper_of_0_or_1_stays_on_its_side(scale: float) -> None:
    actions = demonstrations()
    decoded = round_trip(fitted(scale=scale), actions)
    np.testing.assert_array_equal(decoded[..., 2] > 0.5, actions[..., 2] > 0.5)


def test_a_rare_large_motion_is_slowed_down_to_the_clip() -> None:
    """An axis that rests nearly always: 0.5 % of its actions are large, its quantiles small."""
    chunks = demonstrations()
    chunks[..., 0] = np.random.default_rng(2).uniform(-0.001, 0.001, chunks.shape[:2])
    chunks[:5, :, 0] = HIGH[0]
    codec = FastCodec.fit(chunks.reshape(-1, 3), chunks, low=LOW, high=HIGH)
    largest = codec.offset[0] + CLIP * codec.half_width[0]
    assert largest < HIGH[0] / 8
    rounding = codec.half_width[0] * np.sqrt(HORIZON) / (2 * codec.scale)

    np.testing.assert_allclose(round_trip(codec, chunks[:5])[..., 0], largest, atol=rounding)


def test_coefficients_outside_the_alphabet_get_its_first_or_last_symbol() -> None:
    still = demonstrations()
    still[..., 0] *= 0.1
    codec = FastCodec.fit(demonstrations().reshape(-1, 3), still, low=LOW, high=HIGH)
    fast = np.tile(HIGH, (1, HORIZON, 1))
    symbols = np.append(codec.constants()["num_symbols"], 0)[ids_of(codec, fast)]
    assert symbols.sum() == NUM_SYMBOLS
    assert (round_trip(codec, fast)[..., 0] > 0).all()
    assert (round_trip(codec, fast)[..., 0] <= HIGH[0]).all()


@given(
    actions=hnp.arrays(
        np.float32, (2, HORIZON, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_every_finite_chunk_encodes_and_decodes_into_the_limits(
    codec: FastCodec, actions: np.ndarray
) -> None:
    ids = ids_of(codec, actions)
    counted = np.append(codec.constants()["num_symbols"], 0)[ids].sum(axis=1)
    assert (counted == NUM_SYMBOLS).all()
    _require_legal(codec.decode({"action_ids": ids}))


@given(data=st.data())
def test_every_sequence_of_the_constrained_rule_decodes_to_a_whole_chunk(
    codec: FastCodec, data: st.DataObject
) -> None:
    """At each place a head may take any id of at most as many symbols as are left."""
    num_symbols = codec.constants()["num_symbols"]
    ids = np.full((2, NUM_SYMBOLS), PADDING)
    for row in ids:
        left, position = NUM_SYMBOLS, 0
        while left:
            allowed = np.flatnonzero(num_symbols <= left)
            row[position] = allowed[data.draw(st.integers(0, allowed.size - 1))]
            left, position = left - num_symbols[row[position]], position + 1

    actions = codec.decode({"action_ids": ids})

    assert actions.shape == (2, HORIZON, 3)
    _require_legal(actions)


def _require_legal(actions: np.ndarray) -> None:
    assert actions.dtype == np.float32
    assert np.isfinite(actions).all()
    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()
    assert (actions[..., 1] == np.float32(0.05)).all(), "the axis that never turns"


def test_smooth_chunks_take_far_fewer_ids_than_numbers(codec: FastCodec) -> None:
    smooth = demonstrations()
    noise = np.random.default_rng(1).uniform(LOW, HIGH, smooth.shape).astype(np.float32)
    assert ids_per_chunk(codec, smooth) < NUM_SYMBOLS / 4
    assert ids_per_chunk(codec, noise) > 2 * ids_per_chunk(codec, smooth)


def test_ids_are_padded_behind_the_end_only(codec: FastCodec) -> None:
    ids = ids_of(codec, demonstrations())
    spec = codec.specs()["action_ids"]
    assert (ids.dtype, ids.shape[1:], codec.num_ids) == (spec.dtype, spec.shape, spec.num_ids)
    is_id = ids != PADDING
    assert (np.diff(is_id.astype(int), axis=1) <= 0).all()
    assert is_id[:, 0].all()
    assert ids[is_id].min() >= 0
    assert ids.max() < codec.num_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: 10**12}, r"id 10{12} at position 1 of chunk 1 is outside \[0, "),
        ({1: -2}, r"id -2 at position 1 of chunk 1 is outside"),
        ({1: PADDING}, "id 0 at position 2 of chunk 1 follows padding"),
        ({NUM_SYMBOLS - 1: PADDING}, "the 23 action ids of chunk 1 stand for 23 symbols; a chunk has 24"),
        (dict.fromkeys(range(NUM_SYMBOLS), PADDING), "the 0 action ids of chunk 1 stand for 0 symbols"),
        ({0: -10}, "the 24 action ids of chunk 1 stand for [0-9]+ symbols"),
    ],
)
def test_ids_outside_the_rule_raise_and_are_located(codec: FastCodec, change: dict, message: str) -> None:
    ids = np.zeros((2, NUM_SYMBOLS), dtype=np.int64)  # id 0 is one symbol
    for position, value in change.items():
        ids[1, position] = codec.num_ids - 1 if value == -10 else value  # the last id is a merge
    with pytest.raises(DecodeError, match=message):
        codec.decode({"action_ids": ids})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"actions": np.zeros(1)}, r"answered \['actions'\]; 'action_ids' is needed"),
        ({"action_ids": np.zeros((2, 5), dtype=np.int64)}, r"shape \(2, 5\); \(batch, 24\) is needed"),
        ({"action_ids": np.zeros((2, NUM_SYMBOLS), dtype=np.float32)}, "dtype float32"),
        ({"action_ids": np.zeros((2, NUM_SYMBOLS), dtype=np.bool_)}, "dtype bool"),
    ],
)
def test_what_is_no_array_of_ids_does_not_decode(codec: FastCodec, outputs: dict, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        codec.decode(outputs)


def test_no_chunks_are_no_chunks(codec: FastCodec) -> None:
    assert round_trip(codec, np.zeros((0, HORIZON, 3), dtype=np.float32)).shape == (0, HORIZON, 3)


def test_behind_the_end_of_an_episode_the_last_action_is_held(codec: FastCodec) -> None:
    actions = demonstrations()[:2]
    valid = np.arange(HORIZON) < np.array([[3], [HORIZON]])
    held = actions.copy()
    held[0, 3:] = held[0, 2]
    np.testing.assert_array_equal(codec.encode(actions, valid)["action_ids"], ids_of(codec, held))

    valid[1] = False
    with pytest.raises(ValueError, match="chunk 1 begins with a step that is not valid"):
        codec.encode(actions, valid)


def test_nan_and_wrong_shapes_are_refused(codec: FastCodec) -> None:
    actions = demonstrations()[:2]
    actions[1, 3, 2] = np.nan
    with pytest.raises(ValueError, match=r"position \(1, 3\), dimension 2 is nan"):
        ids_of(codec, actions)
    with pytest.raises(ValueError, match=r"\(batch, 8, 3\) is needed"):
        ids_of(codec, actions[:, :5])


def test_committed_actions_are_normalized_numbers(codec: FastCodec) -> None:
    actions = demonstrations()[:2]
    inputs = codec.encode_committed(actions, np.array([0, 3]))
    assert {name: (a.dtype, a.shape[1:]) for name, a in inputs.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in codec.committed_specs().items()
    }
    expected = codec.normalize(actions[1])
    expected[3:] = 0
    np.testing.assert_array_equal(inputs["committed"][1], expected)
    assert (inputs["committed"][0] == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12))
def test_merges_are_those_of_counting_all_pairs_anew(seed: int, num_base: int, length: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, num_base, (10, length))

    assert _fit_merges(symbols, num_base=num_base, vocab_size=12) == _slow_merges(
        symbols.tolist(), num_base=num_base, vocab_size=12
    )


def _slow_merges(chunks: list[list[int]], *, num_base: int, vocab_size: int) -> list[tuple[int, int]]:
    merges = []
    for new in range(num_base, vocab_size):
        counts = Counter(pair for chunk in chunks for pair in itertools.pairwise(chunk))
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for chunk in chunks:
            i = 0
            while i < len(chunk) - 1:
                if (chunk[i], chunk[i + 1]) == best:
                    chunk[i : i + 2] = [new]
                i += 1
    return merges


def test_fitting_twice_gives_the_same_codec() -> None:
    assert fitted().to_json() == fitted().to_json()


def test_json_gives_back_the_same_codec(codec: FastCodec) -> None:
    data = json.loads(json.dumps(codec.to_json()))
    again, actions = FastCodec.from_json(data), demonstrations()

    assert data["kind"] == "fast"
    assert again.to_json() == codec.to_json()
    np.testing.assert_array_equal(ids_of(again, actions), ids_of(codec, actions))
    np.testing.assert_array_equal(round_trip(again, actions), round_trip(codec, actions))
    np.testing.assert_array_equal(again.constants()["num_symbols"], codec.constants()["num_symbols"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merges": [[0, 10**6]]}, r"merges the ids 0 and 1000000; both must lie in \[0, "),
        ({"merges": [[-1, 0]]}, "merges the ids -1 and 0"),
        ({"action_horizon": 1, "num_base": 1, "merges": [[0, 0], [1, 1]]}, "more than the 3 symbols"),
        ({"num_base": 0}, "num_base is 0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"half_width": [-1.0, 1.0, 1.0]}, "action dimension 0 has offset"),
        ({"num_bins": 256}, r"unknown keys \['num_bins'\]"),
    ],
)
def test_json_of_no_codec_is_refused(codec: FastCodec, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastCodec.from_json({**codec.to_json(), **change})


def test_a_vocabulary_smaller_than_the_alphabet_names_the_least_that_works() -> None:
    with pytest.raises(ValueError, match=r"these chunks have [0-9]+ symbols") as caught:
        fitted(vocab_size=2)
    least = int(str(caught.value).split("must lie in [")[1].split(",")[0])

    codec = fitted(vocab_size=least)

    assert (codec.num_ids, codec.num_base, codec.merges) == (least, least, ())
    with pytest.raises(ValueError, match=f"vocab_size is {least - 1}"):
        fitted(vocab_size=least - 1)
    with pytest.raises(ValueError, match="vocab_size is 1000000"):
        fitted(vocab_size=1_000_000)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale is "):
        fitted(scale=scale)


def test_unfit_demonstrations_are_refused() -> None:
    chunks = demonstrations()
    with pytest.raises(ValueError, match="neither of them empty"):
        FastCodec.fit(chunks.reshape(-1, 3), chunks[:0], low=LOW, high=HIGH)
    chunks[5, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"position \(5, 1\), dimension 2 is nan"):
        FastCodec.fit(chunks[:5].reshape(-1, 3), chunks, low=LOW, high=HIGH)


def test_demonstrations_that_never_move_fit() -> None:
    chunks = np.tile(np.array([0.0, 0.05, 1.0], dtype=np.float32), (50, HORIZON, 1))
    codec = FastCodec.fit(chunks.reshape(-1, 3), chunks, low=LOW, high=HIGH)
    np.testing.assert_array_equal(round_trip(codec, chunks), chunks)
    assert ids_per_chunk(codec, chunks) == 1


def test_encoding_and_fitting_take_no_longer_than_a_generous_bound() -> None:
    """A fit of 20,000 chunks takes seconds and 64 chunks about a millisecond; ten times that is a defect."""
    chunks = demonstrations(num_chunks=2000)
    begin = time.process_time()
    codec = FastCodec.fit(chunks.reshape(-1, 3), chunks, low=LOW, high=HIGH)
    ids_of(codec, chunks[:640])
    assert time.process_time() - begin < 10


def test_it_keeps_the_contract(codec: FastCodec) -> None:
    kept: ActionCodec = codec
    assert (kept.action_horizon, kept.action_dim) == (HORIZON, 3)
