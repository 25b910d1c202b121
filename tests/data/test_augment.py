"""Augmentation: repeatable, on copies, and no further than its pixels."""

import numpy as np

from vla.data.augment import ImageAugmentation

AUGMENTATION = ImageAugmentation(max_shift=2, brightness=0.1, contrast=0.1, colour=0.1)


def a_batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 2, 16, 16, 3), dtype=np.uint8)


def test_the_same_generator_gives_the_same_frames_and_the_input_is_kept():
    images = a_batch()
    kept = images.copy()
    first, second = (AUGMENTATION(images, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(images, kept)


def test_a_shift_moves_the_picture_by_at_most_its_pixels():
    augmentation = ImageAugmentation(max_shift=2, brightness=0.0, contrast=0.0, colour=0.0)
    images = a_batch()
    changed = augmentation(images, np.random.default_rng(3))
    inner = np.s_[2:-2]
    for before, after in zip(images[:, 0], changed[:, 0], strict=True):
        shifts = [np.roll(before, (dy, dx), axis=(0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)]
        assert sum((shifted[inner, inner] == after[inner, inner]).all() for shifted in shifts) == 1
