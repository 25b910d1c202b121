"""The one model that all tabletop tasks share: table, object slots, mats, bowl and a cabinet of two drawers.

It is compiled once per environment. Every object slot carries one geom of each shape, of which `SceneState`
(see scene_state.py) shows one at a time, so that an episode may have any shapes and colors without compiling
again.
Origin: the robot's base, on the table top; x points away from the robot, y to its left, z up.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.tabletop.arm import HAND_BIT, OBJECT_BIT, STATIC_BIT, add_arm

CONTROL_HZ = 20.0
NUM_SUBSTEPS = 16
TIMESTEP_S = 1.0 / CONTROL_HZ / NUM_SUBSTEPS

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.09, 0.09),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.97, 0.86, 0.08),
    "purple": (0.52, 0.12, 0.70),
    "orange": (1.00, 0.48, 0.03),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """An object's form. Sizes are MuJoCo's, in meters; `width` is across the fingers at yaw 0."""

    geom: mujoco.mjtGeom
    size: tuple[float, float, float]
    half_height: float
    width: float
    turns: bool  # whether its yaw can be seen


SHAPES: dict[str, Shape] = {
    "cube": Shape(
        geom=mujoco.mjtGeom.mjGEOM_BOX, size=(0.024, 0.024, 0.024), half_height=0.024, width=0.048, turns=True
    ),
    "ball": Shape(
        geom=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.027, 0.0, 0.0), half_height=0.027, width=0.054, turns=False
    ),
    "cylinder": Shape(
        geom=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=(0.022, 0.034, 0.0),
        half_height=0.034,
        width=0.044,
        turns=False,
    ),
    "brick": Shape(
        geom=mujoco.mjtGeom.mjGEOM_BOX, size=(0.042, 0.019, 0.019), half_height=0.019, width=0.038, turns=True
    ),
}

NUM_SLOTS = 5
NUM_MATS = 2
MAT_HALF_SIZE = 0.065
BOWL_RADIUS, BOWL_HEIGHT = 0.068, 0.036  # inner radius at the rim; rim above the table
OBJECT_MASS_KG = 0.10
OBJECT_DAMPING = (0.1, 5e-4)  # linear [Ns/m], angular [Nms]: felt, so that balls come to rest

NUM_DRAWERS = 2
DRAWER_TRAVEL = 0.16
DRAWER_SPACING = 0.19  # between the middles of the two drawers
KNOB_OFFSET = 0.048  # from the drawer's front face to the middle of the knob
KNOB_HALF_SIZE = (0.009, 0.012, 0.024)
KNOB_HEIGHT = 0.060
CABINET_HALF_DEPTH, CABINET_HEIGHT = 0.075, 0.11

TABLE_TEXTURES = 8  # slots, filled by randomization.paint_textures
TEXTURE_PIXELS = 128

_BOX = mujoco.mjtGeom.mjGEOM_BOX
OBJECT_AFFINITY = STATIC_BIT | OBJECT_BIT | HAND_BIT
_OBJECT_CONTACT = {"contype": OBJECT_BIT, "conaffinity": OBJECT_AFFINITY}
_STATIC_CONTACT = {"contype": STATIC_BIT, "conaffinity": 0, "condim": 4, "friction": [0.7, 0.01, 0.001]}
_DRAWN_ONLY = {"contype": 0, "conaffinity": 0}
HIDDEN_GROUP = 4  # geoms in it are not drawn
PARKED = np.array([0.0, 0.0, -3.0])  # where things go that an episode does not use [m]


def build_model() -> mujoco.MjModel:
    """Compile the scene, with everything at its default place."""
    spec = mujoco.MjSpec()
    spec.modelname = "tabletop"
    option = spec.option
    option.timestep = TIMESTEP_S
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 5.0
    option.iterations = 100  # with few, the solver stops early and a cube set on a cube is flung off
    option.ls_iterations = 50
    spec.visual.quality.numslices = 18
    spec.visual.quality.numstacks = 10
    spec.visual.quality.numquads = 8
    spec.visual.map.znear = 0.01
    spec.visual.map.zfar = 20.0
    spec.stat.extent = 1.0
    spec.stat.center = [0.5, 0.0, 0.0]
    _add_room(spec)
    add_arm(spec, movable_fingers=True)
    for slot in range(NUM_SLOTS):
        _add_object(spec, slot)
    for mat in range(NUM_MATS):
        body = spec.worldbody.add_body(name=f"mat{mat}", pos=PARKED)
        body.add_geom(name=f"mat{mat}", type=_BOX, size=[MAT_HALF_SIZE, MAT_HALF_SIZE, 0.001], **_DRAWN_ONLY)
    _add_bowl(spec)
    _add_cabinet(spec)
    model = spec.compile()
    for slot in range(NUM_SLOTS):  # a free joint cannot have damping in a spec, only in a model
        start = int(model.joint(f"object{slot}").dofadr[0])
        model.dof_damping[start : start + 3] = OBJECT_DAMPING[0]
        model.dof_damping[start + 3 : start + 6] = OBJECT_DAMPING[1]
    return model


def _add_room(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    for i in range(TABLE_TEXTURES):
        spec.add_texture(
            name=f"table{i}",
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            rgb1=[1, 1, 1],
            width=TEXTURE_PIXELS,
            height=TEXTURE_PIXELS,
            nchannel=3,
        )
        material = spec.add_material(name=f"table{i}", texrepeat=[1, 1], reflectance=0.08, specular=0.2)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"table{i}"
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0.45, 0, 0],
        size=[0.75, 0.75, 0.05],
        material="table0",
        **_STATIC_CONTACT,
    )
    world.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, pos=[0, 0, -0.7], size=[4, 4, 0.05], **_DRAWN_ONLY
    )
    # MuJoCo 3.3.3 replaced the flag of a light that is far away by a type of light.
    far = (
        {"type": mujoco.mjtLightType.mjLIGHT_DIRECTIONAL}
        if "mjtLightType" in vars(mujoco)
        else {"directional": True}
    )
    world.add_light(name="lamp", pos=[0.6, 0.4, 1.6], dir=[-0.1, -0.25, -1], **far)
    world.add_camera(name="exterior", pos=[1.0, 0, 0.6], fovy=40)


def _add_object(spec: mujoco.MjSpec, slot: int) -> None:
    body = spec.worldbody.add_body(name=f"object{slot}", pos=PARKED, gravcomp=1)
    body.add_freejoint(name=f"object{slot}")
    body.explicitinertial = True
    body.ipos = [0, 0, 0]
    body.mass = OBJECT_MASS_KG
    body.inertia = [5e-5, 5e-5, 5e-5]  # [kg m2], of a 5 cm cube, a little more for a steady grasp
    for name, shape in SHAPES.items():
        body.add_geom(
            name=f"object{slot}_{name}",
            type=shape.geom,
            size=list(shape.size),
            condim=6 if shape.geom == mujoco.mjtGeom.mjGEOM_SPHERE else 4,  # 6 has rolling friction
            friction=[0.7, 0.01, 0.002],
            **_OBJECT_CONTACT,
        )


def _add_bowl(spec: mujoco.MjSpec) -> None:
    bowl = spec.worldbody.add_body(name="bowl", pos=PARKED)
    num_walls = 10
    half_width = BOWL_RADIUS * np.tan(np.pi / num_walls)
    bowl.add_geom(
        name="bowl_floor",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0, 0, 0.003],
        size=[BOWL_RADIUS * 0.8, 0.003, 0],
        rgba=[0.80, 0.80, 0.82, 1],
        **_STATIC_CONTACT,
    )
    lean = np.deg2rad(25.0)
    for k in range(num_walls):
        angle = 2 * np.pi * k / num_walls
        turn = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        tip = np.array([np.cos(lean / 2), 0, np.sin(lean / 2), 0])
        quaternion = np.zeros(4)
        mujoco.mju_mulQuat(quaternion, turn, tip)
        radius = BOWL_RADIUS - 0.008
        bowl.add_geom(
            type=_BOX,
            pos=[radius * np.cos(angle), radius * np.sin(angle), BOWL_HEIGHT / 2],
            quat=quaternion,
            size=[0.003, half_width, BOWL_HEIGHT / 2],
            rgba=[0.93, 0.93, 0.95, 1] if k % 2 else [0.89, 0.89, 0.91, 1],
            **_STATIC_CONTACT,
        )


def _add_cabinet(spec: mujoco.MjSpec) -> None:
    cabinet = spec.worldbody.add_body(name="cabinet", pos=PARKED)
    half_width = DRAWER_SPACING + 0.006
    wood = [0.62, 0.50, 0.38, 1]
    half_height = CABINET_HEIGHT / 2
    walls = {
        "top": ([0, 0, CABINET_HEIGHT - 0.004], [CABINET_HALF_DEPTH, half_width, 0.004]),
        "left": ([0, half_width, half_height], [CABINET_HALF_DEPTH, 0.004, half_height]),
        "right": ([0, -half_width, half_height], [CABINET_HALF_DEPTH, 0.004, half_height]),
        "middle": ([0, 0, half_height], [CABINET_HALF_DEPTH, 0.004, half_height]),
    }
    for name, (position, size) in walls.items():
        cabinet.add_geom(
            name=f"cabinet_{name}", type=_BOX, pos=position, size=size, rgba=wood, **_STATIC_CONTACT
        )
    for i in range(NUM_DRAWERS):
        _add_drawer(cabinet, i)


def _add_drawer(cabinet: mujoco.MjsBody, i: int) -> None:
    side = (0.5 - i) * DRAWER_SPACING  # drawer 0 is on the robot's left
    drawer = cabinet.add_body(name=f"drawer{i}", pos=[CABINET_HALF_DEPTH, side, 0], gravcomp=1)
    drawer.add_joint(
        name=f"drawer{i}",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[1, 0, 0],
        range=[0, DRAWER_TRAVEL],
        limited=True,
        damping=6.0,
        frictionloss=0.6,
        armature=0.3,
    )
    half_width, gray = DRAWER_SPACING / 2 - 0.008, [0.75, 0.75, 0.77, 1]
    drawer.add_geom(
        name=f"drawer{i}_front",
        type=_BOX,
        pos=[0.004, 0, 0.052],
        size=[0.004, half_width, 0.046],
        mass=0.2,
        **_STATIC_CONTACT,
    )
    drawer.add_geom(
        name=f"drawer{i}_tray",
        type=_BOX,
        pos=[-CABINET_HALF_DEPTH, 0, 0.03],
        size=[CABINET_HALF_DEPTH - 0.004, half_width - 0.006, 0.022],
        mass=0.2,
        **_DRAWN_ONLY,
    )
    face = 0.008
    drawer.add_geom(
        type=_BOX,
        pos=[face + KNOB_OFFSET / 2, 0, KNOB_HEIGHT],
        size=[KNOB_OFFSET / 2, 0.006, 0.006],
        rgba=gray,
        mass=0.02,
        **_DRAWN_ONLY,
    )
    drawer.add_geom(
        name=f"drawer{i}_knob",
        type=_BOX,
        pos=[face + KNOB_OFFSET, 0, KNOB_HEIGHT],
        size=list(KNOB_HALF_SIZE),
        rgba=gray,
        mass=0.05,
        **_STATIC_CONTACT,
    )
    drawer.add_site(name=f"drawer{i}_knob", pos=[face + KNOB_OFFSET, 0, KNOB_HEIGHT], group=HIDDEN_GROUP)
