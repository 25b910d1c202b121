"""Augmentation: repeatable, on copies, and no further than its pixels."""

import numpy as np

from vla.data.augment import ImageAugmentation

AUGMENTATION = ImageAugmentation(max_shift=2, brightness=0.1, contrast=0.1, color=0.1)


def changed_by(augmentation: ImageAugmentation, images: np.ndarray, *, seed: int) -> np.ndarray:
    batch, num_images = images.shape[:2]
    rng = np.random.default_rng(seed)
    return augmentation.draw(batch=batch, num_images=num_images, rng=rng).apply(images)


def a_batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 2, 16, 16, 3), dtype=np.uint8)


def test_the_same_generator_gives_the_same_frames_and_the_input_is_kept():
    images = a_batch()
    kept = images.copy()
    first, second = (changed_by(AUGMENTATION, images, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(images, kept)


def test_a_shift_moves_the_picture_by_at_most_its_pixels():
    augmentation = ImageAugmentation(max_shift=2, brightness=0.0, contrast=0.0, color=0.0)
    images = a_batch()
    changed = changed_by(augmentation, images, seed=3)
    inner, found = np.s_[2:-2], []
    for before, after in zip(images.reshape(-1, 16, 16, 3), changed.reshape(-1, 16, 16, 3), strict=True):
        shifts = [np.roll(before, (dy, dx), axis=(0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)]
        equal = [(shifted[inner, inner] == after[inner, inner]).all() for shifted in shifts]
        assert sum(equal) == 1
        found.append(equal.index(True))
    assert len(set(found)) > 5


def test_brightness_contrast_and_color_change_each_frame_in_its_own_way():
    images = np.full((1, 6, 4, 4, 3), 128, dtype=np.uint8)
    images[..., :2, :] = 60
    for name in ("brightness", "contrast", "color"):
        changes = {"brightness": 0.0, "contrast": 0.0, "color": 0.0, name: 0.2}
        augmentation = ImageAugmentation(max_shift=0, **changes)
        changed = changed_by(augmentation, images, seed=5)[0].astype(int)
        dark, light = changed[:, 0, 0], changed[:, 3, 3]
        assert len(np.unique(dark, axis=0)) > 3, f"{name} changed no frame, or all alike"
        assert (dark == dark[:, :1]).all() == (name != "color")
        assert (len(np.unique(light - dark, axis=0)) == 1) == (name == "brightness")
