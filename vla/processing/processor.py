"""Everything between an observation and the model: ONE object for training, evaluation and bundles.

It holds what must not differ between them (robot spec, input encoders, action codec, frame offsets) and
survives JSON exactly. It imports no torch; the model only ever sees the arrays made here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vla.interface import Arrays, ArraySpec, DecodeError, ModelSpecs, Moments, Observation, ObservationError
from vla.processing.checks import require_form, require_keys
from vla.processing.codec import ActionCodec
from vla.processing.images import ImageInput
from vla.processing.moments import Demonstrations, InputEncoder, moments_of
from vla.processing.registry import CODECS, INPUTS
from vla.resize import Resizing
from vla.spec import RobotSpec

SCHEMA_VERSION = 3
MAX_CLIPPED_SHARE = 0.01  # of a channel's demonstrated actions; more means wrong limits or another unit
JSON_KEYS = ("schema_version", "robot_spec", "frame_offsets", "max_committed", "inputs", "codec")
MOST = {  # of the sizes in JSON, for which memory is taken
    "action_horizon": 10_000,
    "max_committed": 10_000,
    "max_tokens": 65_536,
    "num_bins": 65_536,
    "num_base": 1_000_000,
}
DEFAULT_INPUTS: Mapping[str, Mapping[str, Any]] = {
    "images": {"kind": "images"},
    "text": {"kind": "text"},
    "state": {"kind": "state"},
}


class Processor:
    """Encodes moments (and, in training, actions) for the model, and decodes the model's answers.

    Attributes:
        inputs: the input encoders by the name that the configuration gives them.
        codec: of the actions.
        frame_offsets: which frames a policy looks at, in control periods before now, oldest first.
        max_committed: most actions of a chunk that may be given instead of chosen.
    """

    def __init__(
        self,
        *,
        robot_spec: RobotSpec,
        inputs: Mapping[str, InputEncoder],
        codec: ActionCodec,
        frame_offsets: Sequence[int] = (0,),
        max_committed: int = 0,
    ) -> None:
        self.robot_spec, self.inputs, self.codec = robot_spec, dict(inputs), codec
        self.frame_offsets, self.max_committed = tuple(frame_offsets), max_committed
        self._require_consistent()

    def _require_consistent(self) -> None:
        spec, offsets = self.robot_spec, self.frame_offsets
        if not 0 <= self.max_committed < self.action_horizon:
            raise ValueError(
                f"max_committed is {self.max_committed}; it must lie in [0, action_horizon "
                f"{self.action_horizon}), or no action would be left to choose"
            )
        if not offsets or offsets[-1] != 0 or list(offsets) != sorted(set(offsets), reverse=True):
            raise ValueError(
                f"frame_offsets is {offsets}; it must fall strictly to 0, oldest frame first, such as (4, 0)"
            )
        if self.codec.action_dim != len(spec.action):
            raise ValueError(
                f"the action codec has {self.codec.action_dim} dimensions, robot spec "
                f"{spec.name!r} has {len(spec.action)}: {spec.action_names}"
            )
        names = [name for encoder in self.inputs.values() for name in encoder.specs()]
        names += [*self.codec.committed_specs(), *self.codec.specs()]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two parts of the processor make the array {repeated[0]!r}; rename one")

    @classmethod
    def fit(
        cls,
        demonstrations: Demonstrations,
        *,
        codec: Mapping[str, Any],
        inputs: Mapping[str, Mapping[str, Any]] = DEFAULT_INPUTS,
        frame_offsets: Sequence[int] = (0,),
        max_committed: int = 0,
    ) -> "Processor":
        """Make a processor from demonstrations.

        Args:
            demonstrations: the length of their chunks becomes the action horizon; the range of the codec is
                that of their robot spec.
            codec: ``{"kind": a name of CODECS, setting: value, ...}``.
            inputs: the same for each input encoder, a name of INPUTS.
            frame_offsets: control periods before now, oldest first.
            max_committed: most actions of a chunk that may be given instead of chosen.

        Raises:
            ValueError: empty data, NaN, a wrong number of channels, a state channel of zero width that was
                not announced, actions that do not fit the limits of the robot spec, or an unknown name or
                setting.
            InstructionTooLong: a demonstrated instruction is longer than the text encoder takes.
        """
        spec = demonstrations.robot_spec
        _require_channels(demonstrations)
        processor = cls(
            robot_spec=spec,
            inputs={
                name: INPUTS.build(config, demonstrations=demonstrations, frame_offsets=frame_offsets)
                for name, config in inputs.items()
            },
            codec=CODECS.build(
                codec,
                actions=demonstrations.actions,
                chunks=demonstrations.chunks,
                low=spec.action_low,
                high=spec.action_high,
            ),
            frame_offsets=frame_offsets,
            max_committed=max_committed,
        )
        processor._require_true_specs(demonstrations.chunks[:2])
        return processor

    def _require_true_specs(self, chunks: Float32[np.ndarray, "sample time action"]) -> None:
        """Try the codec, which may be a plug-in's, on some chunks before anything is trained on it."""
        arrays = self.codec.encode(chunks, np.ones(chunks.shape[:2], bool))
        require_form(arrays, self.codec.specs(), num_samples=len(chunks), made_by=self.codec)
        if self.max_committed:
            committed = self.codec.encode_committed(chunks, np.zeros(len(chunks), np.int64))
            specs = self.codec.committed_specs()
            require_form(committed, specs, num_samples=len(chunks), made_by=self.codec)
        self.decode(arrays)

    @property
    def action_horizon(self) -> int:
        """Control periods in a chunk."""
        return self.codec.action_horizon

    @property
    def resizing(self) -> Resizing | None:
        """What brings frames to the size that the policy sees; None where they stay as they are."""
        images = (one for one in self.inputs.values() if isinstance(one, ImageInput))
        return next((one.resizing for one in images), None)

    def specs(self) -> ModelSpecs:
        """Return the form of all that goes into the model and comes out of it."""
        inputs: dict[str, ArraySpec] = {}
        for encoder in self.inputs.values():
            inputs |= encoder.specs()
        if self.max_committed:
            inputs |= self.codec.committed_specs()
        return ModelSpecs(inputs=inputs, targets=self.codec.specs(), constants=self.codec.constants())

    def encode(self, moments: Moments) -> Arrays:
        """Return a batch of model inputs, those of `specs().inputs`; training and policies both call this.

        Raises:
            ObservationError: an input is malformed, or more actions are committed than the policy was
                trained with; the message says which.
        """
        arrays: dict[str, np.ndarray] = {}
        for encoder in self.inputs.values():
            made = encoder.encode(moments)
            require_form(made, encoder.specs(), num_samples=len(moments.state), made_by=encoder)
            arrays |= made
        return {**arrays, **self._encode_committed(moments.committed, moments.num_committed)}

    def _encode_committed(
        self,
        committed: Float32[np.ndarray, "batch time action"],
        num_committed: Int64[np.ndarray, " batch"],
    ) -> Arrays:
        most = int(num_committed.max(initial=0))
        if most > self.max_committed:
            raise ObservationError(
                f"{most} actions are already committed; this policy was trained with at most "
                f"{self.max_committed} (processor.max_committed). Use a schedule that commits fewer, or "
                "train with more"
            )
        if not self.max_committed:
            return {}
        try:
            return self.codec.encode_committed(committed, num_committed)
        except ValueError as error:
            raise ObservationError(f"committed actions: {error}") from error

    def encode_observations(self, observations: Sequence[Observation]) -> Arrays:
        """Return observations as a batch of model inputs.

        Raises:
            ObservationError: no observation, a missing camera or state channel, a wrong image size, dtype or
                number of frames, NaN in the state, a too long instruction, or more committed actions than
                the policy was trained with; the message says which.
        """
        return self.encode(
            moments_of(observations, robot_spec=self.robot_spec, action_horizon=self.action_horizon)
        )

    def decode(self, outputs: Arrays) -> Float32[np.ndarray, "batch time action"]:
        """Return actions, in the units of the robot spec, for what the model answered.

        Raises:
            DecodeError: the answer stands for no chunk; the message says why.
        """
        actions = self.codec.decode(outputs)
        wanted = (self.action_horizon, self.codec.action_dim)
        if actions.ndim != 3 or actions.shape[1:] != wanted or actions.dtype != np.float32:
            codec = f"{type(self.codec).__module__}.{type(self.codec).__qualname__}"
            raise DecodeError(
                f"{codec}.decode returns {actions.dtype}{list(actions.shape)}; float32[batch, {wanted[0]}, "
                f"{wanted[1]}] is needed. Correct it; hold the last command"
            )
        return actions

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data from which `from_json` makes a processor with equal outputs."""
        return {
            "schema_version": SCHEMA_VERSION,
            "robot_spec": self.robot_spec.to_json(),
            "frame_offsets": list(self.frame_offsets),
            "max_committed": self.max_committed,
            "inputs": {name: encoder.to_json() for name, encoder in self.inputs.items()},
            "codec": self.codec.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Processor":
        """Rebuild from `to_json`, exactly; versions 1 and 2, of older bundles, are read too.

        Raises:
            ValueError: another schema version, missing or unknown keys, an unknown kind, or a value of
                another form.
        """
        try:
            return cls._rebuilt(_from_version_2(data))
        except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
            raise ValueError(
                f"processor JSON is of another form ({type(error).__name__}: {error}); export or train again"
            ) from error

    @classmethod
    def _rebuilt(cls, data: dict[str, Any]) -> "Processor":
        """Return the processor that JSON of the present version describes."""
        require_keys(data, JSON_KEYS, what="processor")
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"processor JSON has schema version {data['schema_version']}; "
                f"this code reads {SCHEMA_VERSION}"
            )
        _require_sizes(data)
        robot_spec, offsets = RobotSpec.from_json(data["robot_spec"]), data["frame_offsets"]
        codec = CODECS.get(_kind(data["codec"], what="codec"))
        return cls(
            robot_spec=robot_spec,
            inputs={
                name: INPUTS.get(_kind(encoder, what=f"input {name!r}")).from_json(
                    encoder, robot_spec=robot_spec, frame_offsets=offsets
                )
                for name, encoder in data["inputs"].items()
            },
            codec=codec.from_json(data["codec"]),
            frame_offsets=offsets,
            max_committed=data["max_committed"],
        )


def _require_sizes(data: Any) -> None:
    """Refuse sizes for which no memory should be taken, wherever they stand in the JSON."""
    for key, value in data.items() if isinstance(data, dict) else ():
        if key in MOST and not (type(value) is int and 0 <= value <= MOST[key]):
            raise ValueError(f"processor JSON has {key} {value!r}; it is an integer up to {MOST[key]}")
        _require_sizes(value)


def _kind(data: Mapping[str, Any], *, what: str) -> str:
    if "kind" not in data:
        raise ValueError(f"the {what} of the processor JSON has no 'kind' among its keys {sorted(data)}")
    return data["kind"]


def _from_version_2(data: dict[str, Any]) -> dict[str, Any]:
    """Return JSON of version 1 (without committed actions) or 2 (three fixed inputs) in today's form."""
    if data.get("schema_version") == 1:
        data = {**data, "schema_version": 2, "max_committed": 0}
    if data.get("schema_version") != 2:
        return data
    old = ("schema_version", "robot_spec", "action_horizon", "frame_offsets", "max_committed")
    parts = ("max_text_tokens", "text_tokenizer", "action_tokenizer", "state_normalizer")
    require_keys(data, (*old, *parts), what="processor")
    text = {"kind": "text", "max_tokens": data["max_text_tokens"], "tokenizer": data["text_tokenizer"]}
    codec = {**data["action_tokenizer"], "action_horizon": data["action_horizon"]}
    if "centres" in codec:  # of the quantile codec
        codec["centers"] = codec.pop("centres")
    return {
        "schema_version": SCHEMA_VERSION,
        "robot_spec": data["robot_spec"],
        "frame_offsets": data["frame_offsets"],
        "max_committed": data["max_committed"],
        "inputs": {
            "images": {"kind": "images"},
            "text": text,
            "state": {"kind": "state", "normalizer": data["state_normalizer"]},
        },
        "codec": codec,
    }


def _require_channels(demonstrations: Demonstrations) -> None:
    """Check that demonstrations have the channels of the spec, with actions inside its limits."""
    spec = demonstrations.robot_spec
    for kind, rows, names in (
        ("state", demonstrations.states, spec.state_names),
        ("action", demonstrations.actions, spec.action_names),
    ):
        if rows.shape[1] != len(names):
            raise ValueError(
                f"the demonstrations have {rows.shape[1]} {kind} channels, "
                f"robot spec {spec.name!r} has {len(names)}: {names}"
            )
    for channel, values in zip(spec.action, demonstrations.actions.T, strict=True):
        slack = 1e-3 * (channel.high - channel.low)
        outside = (values < channel.low - slack) | (values > channel.high + slack)
        if outside.sum() > MAX_CLIPPED_SHARE * values.size:
            raise ValueError(
                f"{outside.mean():.0%} of the demonstrated actions of channel {channel.name!r} lie outside "
                f"its limits [{channel.low:g}, {channel.high:g}] {channel.unit}: they range from "
                f"{values.min():g} to {values.max():g}. Correct the spec, or clip when recording"
            )
