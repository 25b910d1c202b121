"""The Franka FR3 with a parallel gripper, as primitive shapes on published kinematics.

Link lengths, joint limits and velocity limits are those of Franka Robotics' FR3 documentation ("Robot and
interface specifications", frankaemika.github.io/docs/control_parameters.html, Denavit-Hartenberg parameters
in Craig's convention). Masses are round numbers near the real ones; gravity is compensated as the real
controller does. Shapes are capsules, cylinders and boxes, so that a camera frame is cheap; only the hand and
the fingers collide.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

NUM_JOINTS = 7
JOINT_NAMES = tuple(f"fr3_joint{i}" for i in range(1, NUM_JOINTS + 1))
FINGER_JOINT_NAMES = ("finger_left", "finger_right")
JOINT_LOW = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)  # [rad]
JOINT_HIGH = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)  # [rad]
JOINT_SPEED = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)  # [rad/s]
JOINT_TORQUE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # [Nm]
FLANGE_OFFSET = 0.107  # joint 7 to flange [m]
TCP_OFFSET = 0.1034  # flange to the point between the fingertips [m]
MAX_OPENING = 0.08  # between the open fingers [m]
HOME_JOINTS = (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785)  # Franka's ready pose [rad]

STATIC_BIT, OBJECT_BIT, HAND_BIT = 1, 2, 4  # collision classes of the whole scene

_STIFFNESS = (6000.0, 6000.0, 5000.0, 5000.0, 2500.0, 2500.0, 1500.0)  # [Nm/rad]
SERVO_LAG_S = 0.036  # by which every joint trails a moving target
_DAMPING = tuple(SERVO_LAG_S * stiffness for stiffness in _STIFFNESS)  # [Nms/rad]
_ARMATURE = (0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1)  # motor inertia seen at the joint [kg m2], estimated
_GRIP_FORCE = 8.0  # of each finger [N]
_WHITE, _GRAY, _DARK = (0.88, 0.89, 0.91, 1.0), (0.55, 0.57, 0.60, 1.0), (0.20, 0.21, 0.23, 1.0)
_CAPSULE, _CYLINDER, _BOX = (
    mujoco.mjtGeom.mjGEOM_CAPSULE,
    mujoco.mjtGeom.mjGEOM_CYLINDER,
    mujoco.mjtGeom.mjGEOM_BOX,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkFrame:
    """One row of the Denavit-Hartenberg table, Craig's convention: a, d [m], alpha [rad]."""

    a: float
    d: float
    alpha: float

    @property
    def position(self) -> list[float]:
        """Origin of the joint's frame in the frame before it [m]."""
        return [self.a, -np.sin(self.alpha) * self.d, np.cos(self.alpha) * self.d]

    @property
    def quaternion(self) -> list[float]:
        """Orientation of the joint's frame in the frame before it, w first."""
        return [np.cos(self.alpha / 2), np.sin(self.alpha / 2), 0.0, 0.0]


_QUARTER = np.pi / 2
LINK_FRAMES = (
    LinkFrame(a=0.0, d=0.333, alpha=0.0),
    LinkFrame(a=0.0, d=0.0, alpha=-_QUARTER),
    LinkFrame(a=0.0, d=0.316, alpha=_QUARTER),
    LinkFrame(a=0.0825, d=0.0, alpha=_QUARTER),
    LinkFrame(a=-0.0825, d=0.384, alpha=-_QUARTER),
    LinkFrame(a=0.0, d=0.0, alpha=_QUARTER),
    LinkFrame(a=0.088, d=0.0, alpha=_QUARTER),
)

# By link: shape, from, to [m, in the joint's frame], radius [m], color. Drawn only.
_Point = tuple[float | int, float | int, float | int]  # [m]
_Segment = tuple[mujoco.mjtGeom, _Point, _Point, float, tuple]
_SHAPES: tuple[tuple[_Segment, ...], ...] = (
    ((_CYLINDER, (0, 0, -0.19), (0, 0, -0.03), 0.06, _WHITE),),
    (
        (_CYLINDER, (0, 0, -0.075), (0, 0, 0.075), 0.062, _GRAY),
        (_CAPSULE, (0, 0, 0), (0, -0.17, 0), 0.06, _WHITE),
    ),
    (
        (_CYLINDER, (0, 0, -0.15), (0, 0, -0.04), 0.056, _WHITE),
        (_CAPSULE, (0, 0, -0.04), (0.0825, 0, 0), 0.05, _WHITE),
    ),
    (
        (_CYLINDER, (0, 0, -0.07), (0, 0, 0.07), 0.055, _GRAY),
        (_CAPSULE, (0, 0, 0), (-0.0825, 0.10, 0), 0.05, _WHITE),
    ),
    (
        (_CYLINDER, (0, 0, -0.29), (0, 0, -0.12), 0.052, _WHITE),
        (_CAPSULE, (0, 0.02, -0.13), (0, 0.02, -0.02), 0.042, _WHITE),
    ),
    (
        (_CYLINDER, (0, 0, -0.06), (0, 0, 0.06), 0.048, _GRAY),
        (_CAPSULE, (0, 0, 0), (0.088, 0, 0), 0.042, _WHITE),
    ),
    (
        (_CYLINDER, (0, 0, -0.03), (0, 0, 0.095), 0.042, _WHITE),
        (_CYLINDER, (0, 0, 0.095), (0, 0, 0.107), 0.034, _DARK),
    ),
)
_MASSES = (3.0, 3.0, 3.0, 2.5, 2.5, 1.5, 0.6)  # [kg]


def add_arm(spec: mujoco.MjSpec, *, movable_fingers: bool) -> None:
    """Add the arm, standing at the origin and reaching along +x, to a model under construction.

    Args:
        spec: receives bodies, joints `fr3_joint1..7`, site `tcp`, camera `wrist` and, with fingers that
            move, joints `finger_left` and `finger_right` and an actuator for every joint.
        movable_fingers: false for the model that inverse kinematics works on, which has seven joints.
    """
    spec.compiler.degree = False
    base = spec.worldbody.add_body(name="fr3_base")
    _add_segment(base, (_CYLINDER, (0, 0, 0.0), (0, 0, 0.145), 0.075, _WHITE), mass=3.0)
    body = base
    for i, frame in enumerate(LINK_FRAMES):
        body = body.add_body(name=f"fr3_link{i + 1}", pos=frame.position, quat=frame.quaternion, gravcomp=1)
        body.add_joint(
            name=JOINT_NAMES[i],
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, 0, 1],
            range=[JOINT_LOW[i], JOINT_HIGH[i]],
            limited=True,
            armature=_ARMATURE[i],
            damping=1.0,
        )
        for segment in _SHAPES[i]:
            _add_segment(body, segment, mass=_MASSES[i] / len(_SHAPES[i]))
    _add_hand(body, movable_fingers)
    if movable_fingers:
        _add_actuators(spec)


def _add_segment(body: mujoco.MjsBody, segment: _Segment, *, mass: float) -> None:
    shape, start, end, radius, color = segment
    body.add_geom(
        type=shape,
        fromto=[*start, *end],
        size=[radius, 0, 0],
        rgba=list(color),
        mass=mass,
        contype=0,
        conaffinity=0,
    )


def _add_hand(link7: mujoco.MjsBody, movable_fingers: bool) -> None:
    eighth = np.pi / 8  # the hand is mounted at -45 degrees about the flange axis
    hand = link7.add_body(
        name="hand", pos=[0, 0, FLANGE_OFFSET], quat=[np.cos(eighth), 0, 0, -np.sin(eighth)], gravcomp=1
    )
    collides = {"contype": HAND_BIT, "conaffinity": STATIC_BIT}
    hand.add_geom(
        name="palm",
        type=_BOX,
        pos=[0, 0, 0.03],
        size=[0.017, 0.075, 0.03],
        rgba=list(_WHITE),
        mass=0.6,
        **collides,
    )
    hand.add_geom(
        type=_BOX,
        pos=[0, 0, 0.059],
        size=[0.016, 0.055, 0.004],
        rgba=list(_DARK),
        mass=0.05,
        contype=0,
        conaffinity=0,
    )
    hand.add_site(name="tcp", pos=[0, 0, TCP_OFFSET], size=[0.003, 0, 0], group=4)
    # Sits in front of the palm, looks along the fingers and a little back at their tips.
    tilt = np.deg2rad(20.0)
    hand.add_camera(
        name="wrist", pos=[0.060, 0, 0.028], xyaxes=[0, 1, 0, np.cos(tilt), 0, np.sin(tilt)], fovy=78
    )
    for name, sign in zip(FINGER_JOINT_NAMES, (1.0, -1.0), strict=True):
        finger = hand.add_body(name=name, pos=[0, sign * 0.006, 0.0584], gravcomp=1)
        if movable_fingers:
            finger.add_joint(
                name=name,
                type=mujoco.mjtJoint.mjJNT_SLIDE,
                axis=[0, sign, 0],
                range=[0, MAX_OPENING / 2],
                limited=True,
                armature=0.1,
                damping=2.0,
            )
        finger.add_geom(
            name=name, type=_BOX, pos=[0, 0, 0.027], size=[0.011, 0.006, 0.027], rgba=list(_DARK), mass=0.03,
            solref=[0.007, 1.0], priority=1, friction=[1.6, 0.02, 0.001], condim=4, **collides,
        )  # fmt: skip


def _add_actuators(spec: mujoco.MjSpec) -> None:
    for i, name in enumerate(JOINT_NAMES):
        _add_servo(spec, name, _STIFFNESS[i], _DAMPING[i], JOINT_TORQUE[i], (JOINT_LOW[i], JOINT_HIGH[i]))
    for name in FINGER_JOINT_NAMES:
        _add_servo(spec, name, 1200.0, 30.0, _GRIP_FORCE, (0.0, MAX_OPENING / 2))
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=FINGER_JOINT_NAMES[0],
        name2=FINGER_JOINT_NAMES[1],
        data=[0, 1] + [0] * (mujoco.mjNEQDATA - 2),  # one finger is where the other is; the rest is unused
        solref=[0.005, 1],
    )


def _add_servo(
    spec: mujoco.MjSpec,
    joint: str,
    stiffness: float,
    damping: float,
    force: float,
    limits: tuple[float, float],
) -> None:
    spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        gainprm=[stiffness] + [0.0] * 9,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        biasprm=[0.0, -stiffness, -damping] + [0.0] * 7,
        forcelimited=True,
        forcerange=[-force, force],
        ctrllimited=True,
        ctrlrange=list(limits),
    )
