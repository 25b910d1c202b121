import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.interface import DecodeError
from vla.processing.vocabulary import Vocabulary

sizes = st.tuples(st.integers(1, 1000), st.integers(1, 1000))


@given(sizes)
def test_special_text_and_action_ids_tile_the_space(case) -> None:
    vocabulary = Vocabulary(text_size=case[0], num_bins=case[1])
    special = [vocabulary.pad_id, vocabulary.bos_id, vocabulary.act_id]
    text = vocabulary.text_to_vocab(np.arange(case[0]))
    action = vocabulary.action_to_vocab(np.arange(case[1]))
    assert [*special, *text, *action] == list(range(vocabulary.size))


@given(sizes)
def test_action_ids_come_back_and_no_other_id_is_one(case) -> None:
    vocabulary = Vocabulary(text_size=case[0], num_bins=case[1])
    bins = np.arange(case[1])
    np.testing.assert_array_equal(vocabulary.vocab_to_action(vocabulary.action_to_vocab(bins)), bins)
    for illegal in (-1, 0, vocabulary.action_offset - 1, vocabulary.size):
        with pytest.raises(DecodeError, match=rf"id {illegal} at position \(1,\) is no action id"):
            vocabulary.vocab_to_action(np.array([vocabulary.action_offset, illegal]))


@pytest.mark.parametrize(("text_size", "num_bins"), [(0, 4), (4, 0)])
def test_empty_parts_are_refused(text_size: int, num_bins: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Vocabulary(text_size=text_size, num_bins=num_bins)
