"""No flipped bit in what this project wrote changes what is learned, run or resumed in silence."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "conformance"))

from bit_flips import KINDS, NAMED, SAME, flip_bits


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_with_the_name_of_the_file_or_changes_nothing(kind, tmp_path):
    counts = flip_bits(KINDS[kind](tmp_path), count=20)
    assert counts[NAMED] + counts[SAME] == 20, dict(counts)
    assert counts[NAMED] >= 15
