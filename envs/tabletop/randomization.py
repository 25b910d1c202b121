"""How the scene looks in an episode: table texture and color, light, camera, by level.

Level "none" is one fixed look, "train" is the range that demonstrations are recorded in, "heldout" has
textures, table colors and lights that "train" never has. Where things stand is the tasks' business.
"""

from typing import Literal, cast, get_args

import mujoco
import numpy as np
from jaxtyping import Float, Float64, UInt8

from envs.tabletop.scene import TABLE_TEXTURES, TEXTURE_PIXELS
from vla.registry import did_you_mean

Level = Literal["none", "train", "heldout"]
TRAIN_TEXTURES = (0, 1, 2, 3, 4)
HELDOUT_TEXTURES = (5, 6, 7)

EXTERIOR_POSITION = np.array([1.02, 0.0, 0.62])  # [m]
EXTERIOR_TARGET = np.array([0.47, 0.0, 0.02])  # what it looks at [m]
EXTERIOR_FOV_DEG = 36.0
CAMERA_JITTER_M, CAMERA_JITTER_DEG = 0.01, 1.0
TINT = 0.03  # largest change of an object's red, green or blue


def checked_level(level: str) -> Level:
    """Return the level, or say which there are.

    Raises:
        ValueError: it is unknown.
    """
    if level not in get_args(Level):
        raise ValueError(f"level {level!r} is unknown; {did_you_mean(level, get_args(Level))}")
    return cast(Level, level)


def paint_textures(model: mujoco.MjModel) -> None:
    """Fill the table's textures, and set how often each repeats. Must precede the making of a renderer.

    MuJoCo bakes the repetition of a plane's texture into the OpenGL context, so it cannot vary by episode.
    """
    for i in range(TABLE_TEXTURES):
        texture = model.texture(f"table{i}").id
        start = model.tex_adr[texture]
        pixels = _pattern(i)
        model.tex_data[start : start + pixels.size] = pixels.ravel()
        model.mat_texrepeat[model.material(f"table{i}").id] = 1.0 + (5 * i % TABLE_TEXTURES) / 4


def _pattern(index: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return one gray pattern; the table's color is multiplied in later."""
    rng = np.random.default_rng(1000 + index)
    v, u = np.mgrid[0:TEXTURE_PIXELS, 0:TEXTURE_PIXELS] / TEXTURE_PIXELS
    waves = _smooth_noise(rng)
    grain = rng.uniform(-1, 1, u.shape)
    if index == 0:  # plain
        gray = np.full_like(u, 0.95)
    elif index == 1:  # speckles
        gray = 0.88 + 0.10 * grain
    elif index == 2:  # checker
        gray = 0.86 + 0.10 * np.where((np.floor(u * 8) + np.floor(v * 8)) % 2 > 0, 1.0, -1.0)
    elif index == 3:  # planks along x
        gray = 0.88 + 0.06 * np.sin(2 * np.pi * (6 * v + 0.3 * waves)) + 0.03 * grain
        gray = np.where((v * 6) % 1 < 0.06, 0.65, gray)
    elif index == 4:  # clouds
        gray = 0.86 + 0.12 * waves
    elif index == 5:  # diagonal stripes
        gray = 0.82 + 0.16 * np.sign(np.sin(2 * np.pi * 9 * (u + v)))
    elif index == 6:  # marble
        gray = 0.85 + 0.14 * np.sin(2 * np.pi * (3 * u + 1.6 * waves))
    else:  # dots
        gray = np.where(((u * 12) % 1 - 0.5) ** 2 + ((v * 12) % 1 - 0.5) ** 2 < 0.07, 0.62, 0.97)
    return np.repeat((np.clip(gray, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _smooth_noise(rng: np.random.Generator) -> Float64[np.ndarray, "h w"]:
    """Return noise in [-1, 1] made of a few periodic waves, so that it tiles."""
    v, u = np.mgrid[0:TEXTURE_PIXELS, 0:TEXTURE_PIXELS] / TEXTURE_PIXELS
    total = np.zeros_like(u)
    for _ in range(12):
        kx, ky = rng.integers(-4, 5, size=2)
        total += np.sin(2 * np.pi * (kx * u + ky * v) + rng.uniform(0, 2 * np.pi))
    return total / np.abs(total).max()


def apply_look(model: mujoco.MjModel, rng: np.random.Generator, level: Level) -> None:
    """Set every field of the model that a look consists of, drawing from `rng` unless `level` is "none"."""
    _set_table(model, rng, level)
    _set_light(model, rng, level)
    jitter = 0.0 if level == "none" else 1.0
    offset = jitter * rng.uniform(-CAMERA_JITTER_M, CAMERA_JITTER_M, 3)
    turn = jitter * np.deg2rad(rng.uniform(-CAMERA_JITTER_DEG, CAMERA_JITTER_DEG, 3))
    camera = model.camera("exterior").id
    model.cam_pos[camera] = EXTERIOR_POSITION + offset
    model.cam_quat[camera] = _looking_at(EXTERIOR_POSITION, EXTERIOR_TARGET, turn)
    model.cam_fovy[camera] = EXTERIOR_FOV_DEG


def _looking_at(
    position: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], turn: Float[np.ndarray, "3"]
) -> Float64[np.ndarray, "4"]:
    """Return the quaternion of a camera that looks at a point, turned a little in its own frame [rad]."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion, nudge, result = np.zeros(4), np.zeros(4), np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    mujoco.mju_euler2Quat(nudge, turn, "xyz")
    mujoco.mju_mulQuat(result, quaternion, nudge)
    return result


def _set_table(model: mujoco.MjModel, rng: np.random.Generator, level: Level) -> None:
    if level == "none":
        texture, color, floor = 1, np.array([0.72, 0.69, 0.64]), 0.35
    elif level == "train":  # light, warm or neutral
        texture = int(rng.choice(TRAIN_TEXTURES))
        value, warmth = rng.uniform(0.50, 0.88), rng.uniform(-0.06, 0.16)
        color = value * np.array([1.0, 1.0 - warmth / 2, 1.0 - warmth])
        floor = rng.uniform(0.2, 0.5)
    else:  # darker and cool
        texture = int(rng.choice(HELDOUT_TEXTURES))
        value, coolness = rng.uniform(0.40, 0.56), rng.uniform(0.12, 0.26)
        color = value * np.array([1.0 - coolness, 1.0 - coolness / 3, 1.0])
        floor = rng.uniform(0.5, 0.7)
    material = model.material(f"table{texture}").id
    model.geom_matid[model.geom("table").id] = material
    model.mat_rgba[material] = [*color, 1.0]
    model.geom_rgba[model.geom("floor").id] = [floor, floor, floor * 1.05, 1.0]


def _set_light(model: mujoco.MjModel, rng: np.random.Generator, level: Level) -> None:
    if level == "none":
        azimuth, height, strength, ambient, warmth = 0.6, 1.1, 0.55, 0.32, 0.0
    elif level == "train":
        azimuth, height = rng.uniform(-0.2, 1.6), rng.uniform(0.9, 1.3)
        strength, ambient, warmth = rng.uniform(0.45, 0.65), rng.uniform(0.26, 0.38), 0.0
    else:  # from the other side, warmer, dimmer or harder
        azimuth, height = rng.uniform(-2.2, -0.9), rng.uniform(0.6, 0.9)
        strength, ambient, warmth = rng.uniform(0.55, 0.75), rng.uniform(0.20, 0.26), rng.uniform(0.06, 0.14)
    flat = np.cos(height)
    model.light_dir[0] = [-flat * np.cos(azimuth), -flat * np.sin(azimuth), -np.sin(height)]
    model.light_diffuse[0] = strength * np.array([1.0, 1.0 - warmth / 2, 1.0 - warmth])
    model.light_specular[0] = 0.15
    model.vis.headlight.ambient = [ambient] * 3
    model.vis.headlight.diffuse = [0.35] * 3
    model.vis.headlight.specular = [0.0] * 3


def draw_tint(rng: np.random.Generator, level: Level) -> Float64[np.ndarray, "3"]:
    """Return a small change of an object's color: red, green, blue."""
    return np.zeros(3) if level == "none" else rng.uniform(-TINT, TINT, 3)
