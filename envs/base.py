"""What every manipulation environment offers: one control period at a time, cameras on demand, success.

`ManipulationEnv` is a Gymnasium environment whose `step` is `advance` (physics, no picture) followed by an
observation (a picture from every camera). Rollouts that look at few frames call `advance`, `read_state` and
`render_camera` themselves and so pay only for what they look at. The base class checks actions, counts how
long the goal has held and ends episodes; it knows nothing about any simulator, robot or task.
"""

import abc
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Float32, UInt8

from vla.errors import VLAError
from vla.geometry import ViewGeometry
from vla.registry import Range, did_you_mean
from vla.spec import RobotSpec

SUCCESS_HOLD_STEPS = 5  # control periods in a row for which the goal must hold: passing by is no success


# Settings that several families of environments declare.
ImageSize = Annotated[int, Range(8, 2048), "height and width of every camera's frames [pixels]"]
VideoSize = Annotated[int, Range(8, 2160), "of frames for people [pixels]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What one control period brought. `success` implies `terminated`; running out of time is `truncated`."""

    reward: float
    success: bool
    terminated: bool
    truncated: bool


class CannotBeCopied(VLAError):
    """An environment was to be copied or pickled."""


def require_choice(what: str, given: str, choices: tuple[str, ...]) -> None:
    """Check that a name is one of the choices.

    Raises:
        ValueError: it is not; the message names the nearest one and all choices.
    """
    if given not in choices:
        raise ValueError(f"{what} {given!r} is unknown; {did_you_mean(given, choices)}")


class ManipulationEnv(gymnasium.Env[dict[str, Any], np.ndarray], abc.ABC):
    """One robot, one task and, from `reset` on, one instruction.

    Reward is 1 in the period in which success is reached and 0 in all others. The episode terminates when
    the goal has held for `success_hold_steps` periods in a row and is truncated after `max_steps` periods.
    Stepping on after either is allowed (recorders keep a few frames of the robot at rest). Any thread may use
    an environment, one at a time. It cannot be copied or pickled, which raises `CannotBeCopied`.
    """

    TASKS: ClassVar[tuple[str, ...]]  # names of the family's tasks, for error messages; each family sets it
    POINTS: ClassVar[tuple[str, ...]] = ()  # names of what `render_with_geometry` finds
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        *,
        robot_spec: RobotSpec,
        task: str,
        max_steps: int,
        success_hold_steps: int = SUCCESS_HOLD_STEPS,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode {render_mode!r} is not supported; use None or {self.metadata['render_modes']}"
            )
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; it must be at least 1 control period")
        if success_hold_steps < 1:
            raise ValueError(f"success_hold_steps is {success_hold_steps}; it must be at least 1 period")
        self.robot_spec = robot_spec
        self.task = task
        self.max_steps = max_steps
        self.success_hold_steps = success_hold_steps
        self.render_mode = render_mode
        self.instruction = ""
        self.num_steps = 0  # control periods since reset
        self.num_clipped = 0  # actions since reset that exceeded their limits and were clipped
        self._held_steps = 0
        self._succeeded = False
        self._is_reset = False
        self.action_space = spaces.Box(robot_spec.action_low, robot_spec.action_high, dtype=np.float32)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict(
                    {
                        camera.name: spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
                        for camera in robot_spec.cameras
                    }
                ),
                "state": spaces.Box(
                    np.array([channel.low for channel in robot_spec.state], np.float32),
                    np.array([channel.high for channel in robot_spec.state], np.float32),
                    dtype=np.float32,
                ),
            }
        )

    # What a family of environments implements.

    @abc.abstractmethod
    def _reset_scene(self, options: dict[str, Any]) -> str:
        """Lay out a new scene with `self.np_random` and return its instruction."""

    @abc.abstractmethod
    def _apply(self, action: Float32[np.ndarray, " action"]) -> None:
        """Execute one action, within limits and finite, for one control period."""

    @abc.abstractmethod
    def _goal_holds(self) -> bool:
        """Tell whether the goal of the episode is fulfilled at this moment."""

    @abc.abstractmethod
    def read_state(self) -> Float32[np.ndarray, " state"]:
        """Return the robot's state in the units and ranges of `robot_spec.state`."""

    @abc.abstractmethod
    def render_camera(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """Return what a camera sees now, at the size that the robot spec gives.

        Raises:
            gymnasium.error.ResetNeeded: there is no scene yet.
            ValueError: there is no such camera; the message names those that exist.
        """

    @abc.abstractmethod
    def render_video_frame(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return a larger picture of the scene for people."""

    @abc.abstractmethod
    def swapped_instruction(self) -> str:
        """Return another instruction: for another goal of this scene, or for a task that looks alike."""

    @abc.abstractmethod
    def expert_action(self) -> Float32[np.ndarray, " action"]:
        """Return the scripted expert's action for the present state. It sees the simulator's state."""

    # What a family may implement besides.

    def render_with_geometry(self, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], ViewGeometry] | None:
        """Return what a camera sees now, with depth and where the `POINTS` are; None if nobody measures it.

        Raises:
            gymnasium.error.ResetNeeded, ValueError: as in `render_camera`.
        """
        return None

    # What all share.

    def require_reset(self, what: str) -> None:
        """Check that there is a scene; those who draw call it too.

        Args:
            what: what cannot be done without, for the error.

        Raises:
            gymnasium.error.ResetNeeded: `reset` has never been called.
        """
        if not self._is_reset:
            raise gymnasium.error.ResetNeeded(f"call reset() before {what} of {self.task!r}")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse what `copy` and `pickle` ask for: simulation and OpenGL context do not travel."""
        raise CannotBeCopied(
            f"{type(self).__name__} holds a simulation and an OpenGL context, so it cannot be copied or "
            "pickled; make another one with the same settings, in the process that uses it"
        )

    def advance(self, action: Float[np.ndarray, " action"]) -> StepOutcome:
        """Run one control period without rendering anything.

        Values beyond the limits of `robot_spec.action` are clipped to them and counted in `num_clipped`.

        Raises:
            ValueError: the action has the wrong shape or holds NaN or infinity.
            gymnasium.error.ResetNeeded: `reset` has never been called.
        """
        self.require_reset("the first step")
        self._apply(self._checked(action))
        self.num_steps += 1
        self._held_steps = self._held_steps + 1 if self._goal_holds() else 0
        first_success = not self._succeeded and self._held_steps >= self.success_hold_steps
        self._succeeded = self._succeeded or first_success
        return StepOutcome(
            reward=float(first_success),
            success=self._succeeded,
            terminated=self._succeeded,
            truncated=not self._succeeded and self.num_steps >= self.max_steps,
        )

    def _checked(self, action: Float[np.ndarray, " action"]) -> Float32[np.ndarray, " action"]:
        given = np.asarray(action, dtype=np.float32)
        names = self.robot_spec.action_names
        if given.shape != (len(names),):
            raise ValueError(
                f"action has shape {given.shape}; {self.task!r} takes {len(names)} numbers: {names}"
            )
        if not np.isfinite(given).all():
            broken = [name for name, value in zip(names, given, strict=True) if not np.isfinite(value)]
            raise ValueError(f"action is not finite in {broken}: {given.tolist()}")
        clipped = np.clip(given, self.robot_spec.action_low, self.robot_spec.action_high)
        # One part in 1e4 of slack: a bin center rounded to float32 is not an excess.
        slack = 1e-4 * (self.robot_spec.action_high - self.robot_spec.action_low)
        self.num_clipped += bool((np.abs(given - clipped) > slack).any())
        return clipped

    def observe(self) -> dict[str, Any]:
        """Return ``{"images": {camera: uint8[h w 3]}, "state": float32[state]}`` as of now.

        Raises:
            gymnasium.error.ResetNeeded: `reset` has never been called.
        """
        self.require_reset("the first observation")
        images = {camera.name: self.render_camera(camera.name) for camera in self.robot_spec.cameras}
        return {"images": images, "state": self.read_state()}

    def _info(self) -> dict[str, Any]:
        return {"success": self._succeeded, "instruction": self.instruction, "task": self.task}

    def start_episode(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Do what `reset` does, without rendering an observation."""
        super().reset(seed=seed)
        self.num_steps = self.num_clipped = self._held_steps = 0
        self._succeeded = False
        self.instruction = self._reset_scene(dict(options or {}))
        self._is_reset = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; the same seed and options give the same scene, whatever came before.

        Raises:
            ValueError: `options` has a key that the environment does not know, or a value it cannot use.
        """
        self.start_episode(seed=seed, options=options)
        return self.observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Gymnasium's step: `advance`, then an observation with a frame from every camera."""
        outcome = self.advance(action)
        return self.observe(), outcome.reward, outcome.terminated, outcome.truncated, self._info()

    def render(self) -> UInt8[np.ndarray, "h w 3"] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the video frame when `render_mode` is ``"rgb_array"``, else nothing."""
        return self.render_video_frame() if self.render_mode == "rgb_array" else None
