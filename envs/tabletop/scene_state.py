"""Puts objects on the table of a compiled scene, and reads where they are.

`SceneState` owns the part of the model that an episode changes: which slots hold what, with which color.
`clear` sets all of it anew, so that an episode never depends on the one before.
"""

from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Float64

from envs.tabletop.arm import FINGER_JOINT_NAMES, OBJECT_BIT
from envs.tabletop.scene import (
    COLORS,
    DRAWER_TRAVEL,
    HIDDEN_GROUP,
    NUM_DRAWERS,
    NUM_MATS,
    NUM_SLOTS,
    OBJECT_AFFINITY,
    PARKED,
    SHAPES,
    Shape,
)

_SHOWN_GROUP = 1
_MAT_HEIGHT = 0.001
_MAT_SHADE = 0.82  # mats are a little darker than objects of the same color


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """An object on the table: the slot that holds it and the words that name it."""

    slot: int
    color: str
    shape: str

    @property
    def name(self) -> str:
        """How instructions call it, for example ``"red cube"``."""
        return f"{self.color} {self.shape}"

    @property
    def form(self) -> Shape:
        """Its sizes."""
        return SHAPES[self.shape]


class SceneState:
    """The movable part of the scene: objects, mats, bowl and drawers of this episode."""

    def __init__(self, *, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.model, self.data = model, data
        self.objects: list[SceneObject] = []
        self.mat_colors: list[str] = []
        self.drawer_colors: list[str] = []
        self.has_bowl = False
        self._object_body = [model.body(f"object{i}").id for i in range(NUM_SLOTS)]
        self._object_qpos = [int(model.joint(f"object{i}").qposadr[0]) for i in range(NUM_SLOTS)]
        self._object_dof = [int(model.joint(f"object{i}").dofadr[0]) for i in range(NUM_SLOTS)]
        self._object_geoms = [
            {shape: model.geom(f"object{i}_{shape}").id for shape in SHAPES} for i in range(NUM_SLOTS)
        ]
        self._mat_body = [model.body(f"mat{i}").id for i in range(NUM_MATS)]
        self._bowl_body = model.body("bowl").id
        self._cabinet_body = model.body("cabinet").id
        self._drawer_body = [model.body(f"drawer{i}").id for i in range(NUM_DRAWERS)]
        self._drawer_qpos = [int(model.joint(f"drawer{i}").qposadr[0]) for i in range(NUM_DRAWERS)]
        self._knob_site = [model.site(f"drawer{i}_knob").id for i in range(NUM_DRAWERS)]
        self._finger_geoms = np.array([model.geom(name).id for name in FINGER_JOINT_NAMES])

    def clear(self) -> None:
        """Take everything off the table and reset the simulation's state to its start."""
        mujoco.mj_resetData(self.model, self.data)
        self.objects, self.mat_colors, self.drawer_colors, self.has_bowl = [], [], [], False
        for slot in range(NUM_SLOTS):
            for geom in self._object_geoms[slot].values():
                self._switch_geom(geom, on=False)
            self.model.body_gravcomp[self._object_body[slot]] = 1.0  # parked things float
            address = self._object_qpos[slot]
            # One above the other, so that parked things never overlap.
            self.data.qpos[address : address + 7] = [PARKED[0], PARKED[1], PARKED[2] - slot, 1, 0, 0, 0]
        for body in (*self._mat_body, self._bowl_body, self._cabinet_body, *self._drawer_body):
            self._show_body(body, on=False)
        for body in (*self._mat_body, self._bowl_body, self._cabinet_body):
            self.model.body_pos[body] = PARKED

    def _switch_geom(self, geom: int, *, on: bool) -> None:
        self.model.geom_group[geom] = _SHOWN_GROUP if on else HIDDEN_GROUP
        self.model.geom_contype[geom] = OBJECT_BIT if on else 0
        self.model.geom_conaffinity[geom] = OBJECT_AFFINITY if on else 0

    def _show_body(self, body: int, *, on: bool) -> None:
        start, count = self.model.body_geomadr[body], self.model.body_geomnum[body]
        self.model.geom_group[start : start + count] = _SHOWN_GROUP if on else HIDDEN_GROUP

    # Laying out

    def add_object(
        self, *, color: str, shape: str, xy: Float[np.ndarray, "2"], yaw: float, tint: Float[np.ndarray, "3"]
    ) -> SceneObject:
        """Stand an object on the table.

        Args:
            color, shape: keys of `COLORS` and `SHAPES`.
            xy: where, in meters.
            yaw: turned by this much about the vertical [rad].
            tint: added to the color's red, green and blue, each in [0, 1].
        """
        item = SceneObject(slot=len(self.objects), color=color, shape=shape)
        self.objects.append(item)
        geom = self._object_geoms[item.slot][shape]
        self._switch_geom(geom, on=True)
        self.model.geom_rgba[geom] = _rgba(color, tint, shade=1.0)
        self.model.body_gravcomp[self._object_body[item.slot]] = 0.0
        address = self._object_qpos[item.slot]
        self.data.qpos[address : address + 7] = [
            *xy, item.form.half_height, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        ]  # fmt: skip
        return item

    def add_mat(self, *, color: str, xy: Float[np.ndarray, "2"], tint: Float[np.ndarray, "3"]) -> int:
        """Lay a mat on the table and return its index."""
        index = len(self.mat_colors)
        self.mat_colors.append(color)
        body = self._mat_body[index]
        self.model.body_pos[body] = [*xy, _MAT_HEIGHT]
        self._show_body(body, on=True)
        self.model.geom_rgba[self.model.body_geomadr[body]] = _rgba(color, tint, shade=_MAT_SHADE)
        return index

    def add_bowl(self, *, xy: Float[np.ndarray, "2"]) -> None:
        """Put the bowl on the table."""
        self.has_bowl = True
        self.model.body_pos[self._bowl_body] = [*xy, 0.0]
        self._show_body(self._bowl_body, on=True)

    def add_cabinet(
        self, *, front: Float[np.ndarray, "2"], colors: list[str], tint: Float[np.ndarray, "3"]
    ) -> None:
        """Put the cabinet on the table, drawers closed; `front` is the middle of its front edge [m]."""
        depth = self.model.body_pos[self._drawer_body[0]][0]
        self.model.body_pos[self._cabinet_body] = [front[0] - depth, front[1], 0.0]
        self._show_body(self._cabinet_body, on=True)
        self.drawer_colors = list(colors)
        for i, color in enumerate(colors):
            self._show_body(self._drawer_body[i], on=True)
            for part in ("front", "tray"):
                shade = 1.0 if part == "front" else 0.6
                self.model.geom(f"drawer{i}_{part}").rgba[:] = _rgba(color, tint, shade=shade)

    def set_drawer(self, index: int, opening: float) -> None:
        """Pull a drawer out by `opening` meters."""
        self.data.qpos[self._drawer_qpos[index]] = np.clip(opening, 0.0, DRAWER_TRAVEL)

    # Looking

    def object_position(self, slot: int) -> Float64[np.ndarray, "3"]:
        """Middle of an object [m]."""
        return self.data.xpos[self._object_body[slot]].copy()

    def object_yaw(self, slot: int) -> float:
        """How far an object is turned about the vertical [rad], in (-pi, pi]."""
        rotation = self.data.xmat[self._object_body[slot]].reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def object_speed(self, slot: int) -> float:
        """Linear speed of an object [m/s]."""
        start = self._object_dof[slot]
        return float(np.linalg.norm(self.data.qvel[start : start + 3]))

    def is_touched(self, slot: int) -> bool:
        """Whether a finger touches the object."""
        contacts = self.data.contact.geom
        mine = np.isin(contacts, list(self._object_geoms[slot].values())).any(axis=1)
        return bool((mine & np.isin(contacts, self._finger_geoms).any(axis=1)).any())

    def mat_position(self, index: int) -> Float64[np.ndarray, "3"]:
        """Middle of a mat [m]."""
        return self.model.body_pos[self._mat_body[index]].copy()

    def bowl_position(self) -> Float64[np.ndarray, "3"]:
        """Middle of the bowl's underside [m]."""
        return self.model.body_pos[self._bowl_body].copy()

    def knob_position(self, index: int) -> Float64[np.ndarray, "3"]:
        """Middle of a drawer's knob [m]."""
        return self.data.site_xpos[self._knob_site[index]].copy()

    def drawer_opening(self, index: int) -> float:
        """How far a drawer is pulled out [m]."""
        return float(self.data.qpos[self._drawer_qpos[index]])


def _rgba(color: str, tint: Float[np.ndarray, "3"], *, shade: float) -> Float64[np.ndarray, "4"]:
    return np.append(np.clip(np.array(COLORS[color]) * shade + tint, 0.0, 1.0), 1.0)
