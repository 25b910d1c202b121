"""Randomized looks: held-out ones are outside of the training range, and layouts keep their distances."""

import numpy as np
import pytest

from envs.tabletop.env import TabletopEnv
from envs.tabletop.layout import draw_names, scatter
from envs.tabletop.randomization import HELDOUT_TEXTURES, TRAIN_TEXTURES, apply_look
from envs.tabletop.scene import COLORS, SHAPES, build_model


def looks(level, count=200):
    """Draw looks; return texture names, table colors, light azimuths and strengths of the ambient light."""
    model = build_model()
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        apply_look(model, rng, level)
        material = int(model.geom("table").matid[0])
        light = model.light_dir[0]
        azimuth = np.arctan2(-light[1], -light[0])
        rows.append((model.material(material).name, *model.mat_rgba[material][:3], azimuth))
    return rows


def test_heldout_looks_never_occur_in_training():
    train, heldout = looks("train"), looks("heldout")
    assert not set(TRAIN_TEXTURES) & set(HELDOUT_TEXTURES)
    assert not {row[0] for row in train} & {row[0] for row in heldout}
    warmth = lambda row: row[1] / row[3]  # noqa: E731  red over blue of the table
    assert min(map(warmth, train)) > max(map(warmth, heldout))
    assert min(row[4] for row in train) > max(row[4] for row in heldout)  # light from the other side


def test_no_randomization_is_one_look():
    assert len(set(looks("none", count=5))) == 1


def test_there_are_six_colors_and_four_shapes():
    assert len(COLORS) >= 6
    assert len(SHAPES) >= 4


def test_scattered_points_keep_their_distance():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = scatter(rng, count=5, low=(0.40, -0.21), high=(0.62, 0.21))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(5, 1)]
        assert gaps.min() >= 0.105


def test_impossible_layout_says_so():
    with pytest.raises(RuntimeError, match="do not fit"):
        scatter(np.random.default_rng(0), count=5, low=(0.0, 0.0), high=(0.01, 0.01))


def test_names_differ_mostly_in_color_and_sometimes_in_shape_alone():
    rng = np.random.default_rng(0)
    scenes = [draw_names(rng, count=4, same_color_share=0.2) for _ in range(300)]
    assert all(len(set(names)) == 4 for names in scenes)
    sharing = np.mean([len({color for color, _ in names}) < 4 for names in scenes])
    assert 0.2 < sharing < 0.7


def test_objects_stay_where_they_are_put():
    env = TabletopEnv(task="lift")
    still = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    for seed in range(6):
        env.start_episode(seed=seed)
        before = [env._scene.object_position(item.slot) for item in env._scene.objects]
        for _ in range(20):
            env.advance(still)
        after = [env._scene.object_position(item.slot) for item in env._scene.objects]
        np.testing.assert_allclose(before, after, atol=2e-3)
