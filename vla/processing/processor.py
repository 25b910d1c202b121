"""Everything between an observation and the model: ONE object for training, evaluation and bundles.

It holds what must not differ between them (robot spec, tokenizers, state constants, horizon, frame offsets)
and survives JSON exactly. It imports no torch; the model only ever sees the arrays made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from vla.interface import DecodeError, Observation, ObservationError
from vla.processing.bins import require_keys
from vla.processing.interface import ActionTokenizer, InstructionTooLong
from vla.processing.normalizer import Normalizer
from vla.processing.registry import action_tokenizer_from_json, fit_action_tokenizer
from vla.processing.text import TextTokenizer
from vla.processing.vocabulary import Vocabulary
from vla.spec import RobotSpec

SCHEMA_VERSION = 2
NO_BIN = -1  # in committed bins: nothing was promised there
MAX_CLIPPED_SHARE = 0.01  # of a channel's demonstrated actions; more means wrong limits or another unit
JSON_KEYS = (
    "schema_version",
    "robot_spec",
    "action_horizon",
    "frame_offsets",
    "max_committed",
    "max_text_tokens",
    "text_tokenizer",
    "action_tokenizer",
    "state_normalizer",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInputs:
    """A batch as the model takes it. Image k is frame k // num_cameras of camera k % num_cameras."""

    images: UInt8[np.ndarray, "batch image h w 3"]  # RGB; frames oldest first, cameras in spec order
    text_ids: Int64[np.ndarray, "batch token"]  # vocabulary ids: bos, text, then pad
    state: Float32[np.ndarray, "batch state"]  # normalised, clipped to the normaliser's clip
    committed: Int64[np.ndarray, "batch time action"]  # bins already promised; NO_BIN from there on


class Processor:
    """Encodes observations (and, in training, actions) for the model, and decodes the model's action ids."""

    def __init__(
        self,
        *,
        robot_spec: RobotSpec,
        text_tokenizer: TextTokenizer,
        action_tokenizer: ActionTokenizer,
        state_normalizer: Normalizer,
        action_horizon: int,
        max_text_tokens: int = 32,
        frame_offsets: Sequence[int] = (0,),
        max_committed: int = 0,
    ) -> None:
        self.robot_spec = robot_spec
        self.text_tokenizer, self.action_tokenizer = text_tokenizer, action_tokenizer
        self.state_normalizer = state_normalizer
        self.action_horizon, self.max_text_tokens = action_horizon, max_text_tokens
        self.frame_offsets, self.max_committed = tuple(frame_offsets), max_committed
        self.vocabulary = Vocabulary(text_size=text_tokenizer.vocab_size, num_bins=action_tokenizer.num_bins)
        self._require_consistent()

    def _require_consistent(self) -> None:
        spec, offsets = self.robot_spec, self.frame_offsets
        if self.action_horizon < 1 or self.max_text_tokens < 1:
            raise ValueError(
                f"action_horizon is {self.action_horizon} and max_text_tokens {self.max_text_tokens}; "
                f"both must be positive"
            )
        if not 0 <= self.max_committed < self.action_horizon:
            raise ValueError(
                f"max_committed is {self.max_committed}; it must lie in [0, action_horizon "
                f"{self.action_horizon}), or no action would be left to choose"
            )
        if not offsets or offsets[-1] != 0 or list(offsets) != sorted(set(offsets), reverse=True):
            raise ValueError(
                f"frame_offsets is {offsets}; it must fall strictly to 0, oldest frame first, such as (4, 0)"
            )
        sizes = {(camera.height, camera.width) for camera in spec.cameras}
        if len(sizes) != 1:
            raise ValueError(
                f"the cameras {spec.camera_names} have the sizes {sorted(sizes)}; one size is needed"
            )
        if self.action_tokenizer.action_dim != len(spec.action):
            raise ValueError(
                f"the action tokenizer has {self.action_tokenizer.action_dim} dimensions, robot spec "
                f"{spec.name!r} has {len(spec.action)}: {spec.action_names}"
            )
        if self.state_normalizer.names != spec.state_names:
            raise ValueError(
                f"the state normaliser is for {self.state_normalizer.names}, robot spec {spec.name!r} has "
                f"{spec.state_names}"
            )

    @classmethod
    def fit(
        cls,
        *,
        robot_spec: RobotSpec,
        states: Float32[np.ndarray, "demonstration state"],
        actions: Float32[np.ndarray, "demonstration action"],
        instructions: Sequence[str],
        action_horizon: int,
        action_tokenizer: str = "uniform",
        num_bins: int = 256,
        frame_offsets: Sequence[int] = (0,),
        max_text_tokens: int = 32,
        text_vocab_size: int = 512,
        max_committed: int = 0,
        constant_state_dims: Sequence[str] = (),
    ) -> "Processor":
        """Make a processor from demonstrations: all states and actions, and the distinct instructions.

        `action_tokenizer` is a name of `registry.ACTION_TOKENIZERS`; its range is that of the robot spec.

        Raises:
            ValueError: empty data, NaN, a wrong number of channels, a state channel of zero width that is
                not in `constant_state_dims`, actions that do not fit the limits of the robot spec, or an
                unknown action tokenizer.
            InstructionTooLong: a training instruction has more than `max_text_tokens` tokens.
        """
        _require_channels(robot_spec, states=states, actions=actions)
        processor = cls(
            robot_spec=robot_spec,
            text_tokenizer=TextTokenizer.train(instructions, vocab_size=text_vocab_size),
            action_tokenizer=fit_action_tokenizer(
                action_tokenizer,
                actions,
                low=robot_spec.action_low,
                high=robot_spec.action_high,
                num_bins=num_bins,
            ),
            state_normalizer=Normalizer.fit(
                [states], names=robot_spec.state_names, constant_dims=constant_state_dims
            ),
            action_horizon=action_horizon,
            max_text_tokens=max_text_tokens,
            frame_offsets=frame_offsets,
            max_committed=max_committed,
        )
        processor.encode_text(instructions)
        return processor

    @property
    def num_images(self) -> int:
        """Images per observation: frames times cameras."""
        return len(self.frame_offsets) * len(self.robot_spec.cameras)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image in pixels."""
        camera = self.robot_spec.cameras[0]
        return camera.height, camera.width

    @property
    def bins_per_dim(self) -> list[int]:
        """Ids that each action dimension uses: all of them, see `ActionTokenizer`."""
        return [self.action_tokenizer.num_bins] * self.action_tokenizer.action_dim

    def encode(self, observations: Sequence[Observation]) -> ModelInputs:
        """Return a batch of model inputs.

        Raises:
            ObservationError: no observation, a missing camera or state channel, a wrong image size, dtype or
                number of frames, NaN in the state, a too long instruction, or more committed actions than
                the policy was trained with; the message says which.
        """
        if not observations:
            raise ObservationError("there are no observations to encode")
        for i, observation in enumerate(observations):
            self._require_images(observation, index=i)
            self._require_state(observation, index=i)
        cameras = self.robot_spec.camera_names
        images = np.stack([np.stack([o.images[name] for name in cameras], axis=1) for o in observations])
        return ModelInputs(
            images=images.reshape(len(observations), self.num_images, *self.image_size, 3),
            text_ids=self.encode_text([observation.instruction for observation in observations]),
            state=self.encode_state(np.stack([observation.state for observation in observations])),
            committed=np.stack([self._committed_bins(observation) for observation in observations]),
        )

    def _committed_bins(self, observation: Observation) -> Int64[np.ndarray, "time action"]:
        committed = observation.committed
        if len(committed) > self.max_committed:
            raise ObservationError(
                f"{len(committed)} actions are already committed; this policy was trained with at most "
                f"{self.max_committed} (processor.max_committed). Use a schedule that commits fewer, or "
                "train with more"
            )
        bins = np.full((self.action_horizon, len(self.robot_spec.action)), NO_BIN, dtype=np.int64)
        if len(committed):
            try:
                bins[: len(committed)] = self.encode_actions(committed[None])[0]
            except ValueError as error:
                raise ObservationError(f"committed actions: {error}") from error
        return bins

    def encode_text(self, instructions: Sequence[str]) -> Int64[np.ndarray, "batch token"]:
        """Return vocabulary ids [batch, max_text_tokens]: bos, the instruction, then padding.

        Raises:
            InstructionTooLong: bos and the instruction exceed `max_text_tokens`; the message names the limit.
        """
        ids = np.full((len(instructions), self.max_text_tokens), self.vocabulary.pad_id, dtype=np.int64)
        ids[:, 0] = self.vocabulary.bos_id
        for row, instruction in zip(ids, instructions, strict=True):
            text = np.asarray(self.text_tokenizer.encode(instruction), dtype=np.int64)
            if 1 + text.size > self.max_text_tokens:
                raise InstructionTooLong(
                    f"instruction {instruction!r} has {1 + text.size} tokens (one marks the beginning); the "
                    f"limit max_text_tokens is {self.max_text_tokens}. Shorten it or train with a larger one"
                )
            row[1 : 1 + text.size] = self.vocabulary.text_to_vocab(text)
        return ids

    def encode_state(self, states: Float32[np.ndarray, "batch state"]) -> Float32[np.ndarray, "batch state"]:
        """Return normalised states, in about [-1, 1], clipped.

        Raises:
            ObservationError: a wrong number of channels, NaN or infinity; the message names the channel.
        """
        try:
            return self.state_normalizer.normalize(states)
        except ValueError as error:
            raise ObservationError(f"state: {error}") from error

    def encode_actions(
        self, actions: Float32[np.ndarray, "batch time action"]
    ) -> Int64[np.ndarray, "batch time action"]:
        """Return the bins of actions; those outside the limits get the first or last bin.

        Raises:
            ValueError: a wrong number of dimensions, NaN or infinity; the message says where.
        """
        return self.action_tokenizer.encode(actions)

    def decode(self, bins: np.ndarray) -> Float32[np.ndarray, "batch time action"]:
        """Return actions, in the units of the robot spec, for int bins [batch action_horizon action].

        Raises:
            DecodeError: wrong shape or dtype, or an id that is no bin; the message says where.
        """
        expected = (self.action_horizon, len(self.robot_spec.action))
        if bins.ndim != 3 or bins.shape[1:] != expected:
            raise DecodeError(
                f"action bins have shape {bins.shape}; expected (batch, {expected[0]}, {expected[1]})"
            )
        return self.action_tokenizer.decode(bins)

    def _require_images(self, observation: Observation, *, index: int) -> None:
        height, width = self.image_size
        expected = (len(self.frame_offsets), height, width, 3)
        for name in self.robot_spec.camera_names:
            if name not in observation.images:
                raise ObservationError(
                    f"observation {index} has no camera {name!r}; it has {sorted(observation.images)}, "
                    f"robot spec {self.robot_spec.name!r} needs {list(self.robot_spec.camera_names)}"
                )
            frames = observation.images[name]
            if frames.dtype != np.uint8 or frames.shape != expected:
                raise ObservationError(
                    f"observation {index}, camera {name!r}: {frames.dtype}{list(frames.shape)} given, "
                    f"uint8{list(expected)} (frames, height, width, RGB) needed; frames are those at "
                    f"{self.frame_offsets} control periods before now"
                )

    def _require_state(self, observation: Observation, *, index: int) -> None:
        names = self.robot_spec.state_names
        if observation.state.dtype != np.float32 or observation.state.shape != (len(names),):
            raise ObservationError(
                f"observation {index} has a state {observation.state.dtype}{list(observation.state.shape)}; "
                f"float32[{len(names)}] is needed: {list(names)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data from which `from_json` makes a processor with equal outputs."""
        return {
            "schema_version": SCHEMA_VERSION,
            "robot_spec": self.robot_spec.to_json(),
            "action_horizon": self.action_horizon,
            "frame_offsets": list(self.frame_offsets),
            "max_committed": self.max_committed,
            "max_text_tokens": self.max_text_tokens,
            "text_tokenizer": self.text_tokenizer.to_json(),
            "action_tokenizer": self.action_tokenizer.to_json(),
            "state_normalizer": self.state_normalizer.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Processor":
        """Rebuild from `to_json`, exactly.

        Raises:
            ValueError: another schema version, or missing or unknown keys.
        """
        if data.get("schema_version") == 1:  # before actions could be committed
            data = {**data, "schema_version": SCHEMA_VERSION, "max_committed": 0}
        require_keys(data, JSON_KEYS, what="processor")
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"processor JSON has schema version {data['schema_version']}; "
                f"this code reads {SCHEMA_VERSION}"
            )
        return cls(
            robot_spec=RobotSpec.from_json(data["robot_spec"]),
            text_tokenizer=TextTokenizer.from_json(data["text_tokenizer"]),
            action_tokenizer=action_tokenizer_from_json(data["action_tokenizer"]),
            state_normalizer=Normalizer.from_json(data["state_normalizer"]),
            action_horizon=data["action_horizon"],
            max_text_tokens=data["max_text_tokens"],
            frame_offsets=data["frame_offsets"],
            max_committed=data["max_committed"],
        )


def _require_channels(
    robot_spec: RobotSpec,
    *,
    states: Float32[np.ndarray, "demonstration _"],
    actions: Float32[np.ndarray, "demonstration _"],
) -> None:
    """Check that demonstrations have the channels of the spec, with actions inside its limits."""
    for kind, rows, names in (
        ("state", states, robot_spec.state_names),
        ("action", actions, robot_spec.action_names),
    ):
        if rows.shape[1] != len(names):
            raise ValueError(
                f"the demonstrations have {rows.shape[1]} {kind} channels, "
                f"robot spec {robot_spec.name!r} has {len(names)}: {names}"
            )
    for channel, values in zip(robot_spec.action, actions.T, strict=True):
        slack = 1e-3 * (channel.high - channel.low)
        outside = (values < channel.low - slack) | (values > channel.high + slack)
        if outside.sum() > MAX_CLIPPED_SHARE * values.size:
            raise ValueError(
                f"{outside.mean():.0%} of the demonstrated actions of channel {channel.name!r} lie outside "
                f"its limits [{channel.low:g}, {channel.high:g}] {channel.unit}: they range from "
                f"{values.min():g} to {values.max():g}. Correct the spec, or clip when recording"
            )
