"""From the names that a client sends to the cameras, state and instruction of a bundle, and back.

Every robot and benchmark names its observation keys differently, so the names are data. A map refuses what
does not fit, and its errors say what came and what is wanted.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, UInt8

from policies.serving.wire import PackedImage
from policies.serving.wire_images import unpack_image
from vla.interface import Observation, ObservationError
from vla.registry import Choices, check_attributes, check_settings
from vla.resize import RESIZE_MODES, resize_image
from vla.spec import CameraSpec, RobotSpec

COMMITTED_KEY = "committed"  # our extension: actions that will be executed whatever comes
MAX_INSTRUCTION_BYTES = 1024
MAX_PIXELS = 2 << 20  # of one camera's frame, before resizing
MAX_KEYS_SHOWN = 12


class RequestError(ObservationError):
    """A client's observation does not fit; `code` is one word for programs, the text is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservationMap:
    """Where a client's message holds what. A key with dots (``images.cam_high``) leads into nested maps.

    What is left empty is derived from the bundle: see `filled_from`.
    """

    cameras: Annotated[Mapping[str, str], "camera of the bundle: the client's key"] = field(
        default_factory=dict
    )
    state: Annotated[Sequence[str], "keys whose numbers, one after the other, are the state"] = ()
    instruction: Annotated[str, "key of the instruction"] = ""
    layout: Annotated[str, Choices("hwc", "chw"), "axis order of the images"] = "hwc"
    resize: Annotated[str, Choices("refuse", *RESIZE_MODES), "images of other sizes"] = "refuse"
    missing_frames: Annotated[
        str, Choices("refuse", "repeat"), "one image where the policy looks at several frames"
    ] = "refuse"

    def __post_init__(self) -> None:
        check_attributes(self, where="observation_map")

    def filled_from(self, derived: "ObservationMap") -> "ObservationMap":
        """Return this map with the keys that it leaves empty taken from another."""
        return replace(
            self,
            cameras=self.cameras or derived.cameras,
            state=self.state or derived.state,
            instruction=self.instruction or derived.instruction,
        )

    @classmethod
    def openpi(cls, spec: RobotSpec) -> "ObservationMap":
        """Return the map of clients written for this server: ``observation/<camera>`` and so on."""
        return cls(
            cameras={name: f"observation/{name}" for name in spec.camera_names},
            state=("observation/state",),
            instruction="prompt",
        )

    @classmethod
    def vla_eval(cls, spec: RobotSpec) -> "ObservationMap":
        """Return the map of vla-eval benchmarks whose cameras have the bundle's names."""
        return cls(
            cameras={name: f"images.{name}" for name in spec.camera_names},
            state=("state",),
            instruction="task_description",
        )

    def require_fitting(self, spec: RobotSpec, *, name: str) -> None:
        """Check that the map has keys for the state, the instruction and all cameras of a robot.

        Args:
            spec: the robot; keys of cameras that it does not have count for nothing.
            name: of the map in the configuration, for the message.

        Raises:
            ValueError: a key is missing; the message lists both sides.
        """
        if not self.state or not self.instruction:
            raise ValueError(f"{name}: state and instruction need keys, such as observation/state")
        missing = [camera for camera in spec.camera_names if camera not in self.cameras]
        if missing:
            example = ", ".join(f"{camera}: key/of/{camera}" for camera in missing)
            raise ValueError(
                f"{name} has no keys for the cameras {missing} of robot {spec.name!r}, only for "
                f"{sorted(self.cameras)}. Give them: '+{name}.cameras={{{example}}}'"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the map as JSON-ready data, as a server announces it."""
        return {
            "cameras": dict(self.cameras),
            "state": list(self.state),
            "instruction": self.instruction,
            "layout": self.layout,
            "resize": self.resize,
            "missing_frames": self.missing_frames,
        }

    @classmethod
    def from_json(cls, data: Any) -> "ObservationMap":
        """Rebuild from `to_json`.

        Raises:
            ValueError: keys are missing, unknown or of the wrong type.
        """
        if not isinstance(data, dict):
            raise ValueError(f"no observation map: it is a {type(data).__name__}, not a map")
        return cls(**check_settings(cls, data, where="observation_map"))

    def to_observation(
        self, message: Mapping[str, Any], *, spec: RobotSpec, frame_offsets: tuple[int, ...], stamp: float
    ) -> Observation:
        """Return what a policy of robot `spec` may know, from a client's message. Other keys are ignored.

        Raises:
            RequestError: something is missing, of the wrong form or size, not finite, or no instruction.
            WireError: a compressed image is too large or damaged.
        """
        return Observation(
            images={
                camera.name: self._frames(message, camera, num_frames=len(frame_offsets))
                for camera in spec.cameras
            },
            state=self._state(message, spec),
            instruction=_instruction(_find(message, self.instruction), key=self.instruction),
            committed=_committed(message.get(COMMITTED_KEY), num_channels=len(spec.action)),
            stamp=stamp,
        )

    def to_request(self, observation: Observation) -> dict[str, Any]:
        """Return the message from which `to_observation` makes this observation again.

        Raises:
            ObservationError: a camera of the map is missing.
            ValueError: the map asks for the state in several parts, whose lengths are not known here.
        """
        if len(self.state) != 1:
            raise ValueError(
                f"the server wants the state in parts {list(self.state)}; make such requests by hand"
            )
        message: dict[str, Any] = {}
        for name, key in self.cameras.items():
            if name not in observation.images:
                raise ObservationError(
                    f"no camera {name!r}; the observation has {sorted(observation.images)}"
                )
            frames = observation.images[name]
            frames = frames[0] if len(frames) == 1 else frames
            _put(message, key, np.moveaxis(frames, -1, -3) if self.layout == "chw" else frames)
        _put(message, self.state[0], observation.state)
        _put(message, self.instruction, observation.instruction)
        if len(observation.committed):
            message[COMMITTED_KEY] = observation.committed
        return message

    def _frames(
        self, message: Mapping[str, Any], camera: CameraSpec, *, num_frames: int
    ) -> UInt8[np.ndarray, "frames h w 3"]:
        key = self.cameras[camera.name]
        image = _find(message, key)
        if isinstance(image, PackedImage):
            image = unpack_image(image, max_pixels=MAX_PIXELS)
        wanted = f"uint8[{camera.height}, {camera.width}, 3] RGB for camera {camera.name!r}"
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise RequestError("image_type", f"{key!r} holds {_form(image)}; wanted is {wanted}")
        if self.layout == "chw" and image.ndim in (3, 4):
            image = np.moveaxis(image, -3, -1)
        if image.ndim not in (3, 4) or image.shape[-1] != 3 or not image.size:
            raise RequestError(
                "image_shape", f"{key!r} has shape {list(image.shape)} (as {self.layout}); wanted is {wanted}"
            )
        frames = image[None] if image.ndim == 3 else image
        if len(frames) == 1 < num_frames and self.missing_frames == "repeat":
            frames = np.repeat(frames, num_frames, axis=0)
        if len(frames) != num_frames:
            raise RequestError(
                "image_frames",
                f"{key!r} holds {len(frames)} frame(s), the policy looks at {num_frames}; send "
                f"[{num_frames}, height, width, 3], oldest first, or serve with missing_frames=repeat",
            )
        return self._sized(frames, camera, wanted=f"{wanted}, at {key!r}")

    def _sized(
        self, frames: np.ndarray, camera: CameraSpec, *, wanted: str
    ) -> UInt8[np.ndarray, "frames h w 3"]:
        height, width = frames.shape[1:3]
        if (height, width) == (camera.height, camera.width):
            return np.ascontiguousarray(frames)
        if self.resize == "refuse":
            raise RequestError(
                "image_size",
                f"a frame has {height}x{width} pixels; wanted is {wanted}. Resize it, or serve with "
                f"openpi_map.resize=pad or stretch (of a benchmark: vla_eval_map.resize)",
            )
        if height * width > MAX_PIXELS:
            raise RequestError(
                "image_size", f"a frame of {height}x{width} pixels; {MAX_PIXELS} are resized at most"
            )
        return np.stack(
            [
                resize_image(frame, height=camera.height, width=camera.width, mode=self.resize)
                for frame in frames
            ]
        )

    def _state(self, message: Mapping[str, Any], spec: RobotSpec) -> Float32[np.ndarray, " state"]:
        parts = [_numbers(_find(message, key), key=key) for key in self.state]
        state = np.concatenate(parts)
        if len(state) != len(spec.state):
            lengths = ", ".join(f"{key!r} {len(part)}" for key, part in zip(self.state, parts, strict=True))
            raise RequestError(
                "state_shape",
                f"the state has {len(state)} numbers ({lengths}); wanted are {len(spec.state)}: "
                f"{', '.join(spec.state_names)}",
            )
        return state


def _find(message: Mapping[str, Any], key: str) -> Any:
    """Return the value at a key, or at the end of a path with dots."""
    if key in message:
        return message[key]
    value: Any = message
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RequestError("missing_key", f"there is no {key!r}; the message has {_keys(message)}")
        value = value[part]
    return value


def _put(message: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        message = message.setdefault(part, {})
    message[last] = value


def _keys(message: Mapping[str, Any]) -> str:
    """Return the keys of a message, nested ones with dots, cut to a readable length."""
    found: list[str] = []
    for key, value in message.items():
        nested = [f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [key]
        found.extend(nested)
    shown = ", ".join(repr(key[:60]) for key in sorted(found)[:MAX_KEYS_SHOWN])
    return shown + (f" and {len(found) - MAX_KEYS_SHOWN} more" if len(found) > MAX_KEYS_SHOWN else "")


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"


def _numbers(value: Any, *, key: str) -> Float32[np.ndarray, " numbers"]:
    """Return a flat float32 copy of an array, number or list of numbers, finite."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(one, float | int | np.number) and not isinstance(one, bool) for one in numbers):
        value = np.asarray([float(one) for one in numbers])
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim > 1:
        raise RequestError("state_type", f"{key!r} holds {_form(value)}; wanted is a vector of numbers")
    with np.errstate(over="ignore"):
        numbers = np.atleast_1d(value).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise RequestError("state_not_finite", f"{key!r} holds NaN or an infinity at {_first_bad(numbers)}")
    return numbers


def _first_bad(numbers: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(numbers))[0])


def _instruction(text: Any, *, key: str) -> str:
    if not isinstance(text, str):
        raise RequestError("instruction_type", f"{key!r} holds {_form(text)}; an instruction is text")
    if not text.strip():
        raise RequestError(
            "instruction_empty", f"the instruction at {key!r} is empty; say what is to be done"
        )
    size = len(text.encode("utf-8", errors="replace"))
    if size > MAX_INSTRUCTION_BYTES:
        raise RequestError(
            "instruction_too_long",
            f"the instruction at {key!r} has {size} bytes; the limit is {MAX_INSTRUCTION_BYTES}",
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise RequestError("instruction_control", f"the instruction at {key!r} holds control characters")
    return text


def _committed(value: Any, *, num_channels: int) -> Float32[np.ndarray, "committed action"]:
    if value is None:
        return np.zeros((0, num_channels), dtype=np.float32)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape[1:] != (num_channels,):
        raise RequestError(
            "committed_shape",
            f"{COMMITTED_KEY!r} holds {_form(value)}; wanted is float32[steps, {num_channels}]",
        )
    if not np.isfinite(value).all():
        raise RequestError("committed_not_finite", f"{COMMITTED_KEY!r} holds NaN or an infinity")
    return value.astype(np.float32)
