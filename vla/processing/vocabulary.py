"""One id space for everything the model reads and writes, as in RT-2 (arXiv:2307.15818).

    0    1    2    3 ...            action_offset ...          size
    pad  bos  act  | text (BPE)     | action bins, shared by all dimensions

Text ids come from the text tokenizer, action ids from the action tokenizer, each from 0 on; this file only
shifts them. It knows neither tokenizer.
"""

import numpy as np
from jaxtyping import Int64

from vla.interface import DecodeError
from vla.processing.bins import first_true


class Vocabulary:
    """The layout [special | text | action] for `text_size` text ids and `num_bins` action ids.

    >>> vocabulary = Vocabulary(text_size=300, num_bins=256)
    >>> vocabulary.action_offset, vocabulary.size
    (303, 559)
    >>> vocabulary.vocab_to_action(vocabulary.action_to_vocab(np.array([0, 255]))).tolist()
    [0, 255]
    """

    pad_id = 0  # fills an instruction up to max_text_tokens
    bos_id = 1  # before every instruction, so that a blank one is not empty
    act_id = 2  # before the first action id: the instruction is over, act
    text_offset = 3

    def __init__(self, *, text_size: int, num_bins: int) -> None:
        if text_size < 1 or num_bins < 1:
            raise ValueError(f"text_size is {text_size} and num_bins {num_bins}; both must be positive")
        self.text_size, self.num_bins = text_size, num_bins

    @property
    def action_offset(self) -> int:
        """Id of action bin 0."""
        return self.text_offset + self.text_size

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.action_offset + self.num_bins

    def text_to_vocab(self, text_ids: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Shift ids of the text tokenizer, in [0, text_size), into the common space."""
        return text_ids + self.text_offset

    def action_to_vocab(self, bins: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Shift action bins, in [0, num_bins), into the common space."""
        return bins + self.action_offset

    def vocab_to_action(self, ids: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Shift ids of the common space back to action bins.

        Raises:
            DecodeError: an id is no action id; the message says which and where.
        """
        bins = ids - self.action_offset
        illegal = (bins < 0) | (bins >= self.num_bins)
        if illegal.any():
            where = first_true(illegal)
            raise DecodeError(
                f"id {ids[where]} at position {where} is no action id; those are "
                f"[{self.action_offset}, {self.size})"
            )
        return bins
