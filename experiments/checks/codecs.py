"""Looks at an action codec before a head learns from it: what it loses, refuses, and changes by itself.

It is fitted to one half of some chunks and tried on the other: random ones, smooth as demonstrations are, and
those of a recording where one is given.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32

from experiments.checks.examination import Examination, raised
from vla.data.reader import Dataset
from vla.interface import Arrays, ArraySpec, DecodeError
from vla.processing.checks import require_form
from vla.processing.codec import ActionCodec
from vla.processing.registry import CODECS
from vla.spec import CameraSpec, Channel, RobotSpec

NUM_CHUNKS = 256  # at most, of each kind
LOSES, LOSES_MUCH = 0.02, 0.05  # mean error as a share of what a channel typically spans
_STEADY = 1e-5  # of a channel's range: what rounding may change
_RAISES = "it runs"
RANDOM_SPEC = RobotSpec(  # units and ranges as an arm has them
    name="random",
    cameras=(CameraSpec(name="none", height=8, width=8),),
    state=(Channel(name="x", unit="m", low=-1.0, high=1.0),),
    action=(
        *(Channel(name=f"delta_{axis}", unit="m", low=-0.025, high=0.025) for axis in "xyz"),
        *(Channel(name=f"joint_{i}", unit="rad", low=-2.9, high=0.4 * i) for i in range(1, 4)),
        Channel(name="gripper", unit="1", low=0.0, high=1.0),
    ),
    control_hz=20.0,
    action_convention="joint_target",
    gripper_sign="positive_opens",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """What a codec is fitted to and tried on.

    Attributes:
        name: of the data, in words.
        spec: whose actions they are.
        fitted: the half that it is fitted to.
        tried: the other half.
    """

    name: str
    spec: RobotSpec
    fitted: Float32[np.ndarray, "chunk time action"]
    tried: Float32[np.ndarray, "chunk time action"]


def random_chunks(*, action_horizon: int) -> Chunks:
    """Return smooth random chunks within the limits of `RANDOM_SPEC`: sums of a few slow waves."""
    rng = np.random.default_rng(0)
    dims = len(RANDOM_SPEC.action)
    time = np.arange(action_horizon)[:, None, None] / 40  # two seconds make the slowest wave
    phase = rng.uniform(0, 1, (2 * NUM_CHUNKS, 1, dims, 4))
    size = rng.uniform(0, 1, (2 * NUM_CHUNKS, 1, dims, 4)) / np.arange(1, 5)
    waves = (size * np.sin(2 * np.pi * (time * np.arange(1, 5) + phase))).sum(axis=-1)
    unit = 0.5 + 0.5 * waves / size.sum(axis=-1)
    low, high = RANDOM_SPEC.action_low, RANDOM_SPEC.action_high
    chunks = (low + unit * (high - low)).astype(np.float32)
    return Chunks(
        name="random chunks", spec=RANDOM_SPEC, fitted=chunks[:NUM_CHUNKS], tried=chunks[NUM_CHUNKS:]
    )


def recorded_chunks(dataset: Dataset, *, action_horizon: int) -> Chunks:
    """Return whole chunks of a recording, evenly spread over it.

    Raises:
        ValueError: fewer than 4 chunks of that length fit into its episodes.
    """
    begins = [
        start + np.arange(max(0, length - action_horizon + 1))
        for start, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True)
    ]
    moments = np.concatenate(begins)
    if len(moments) < 4:
        raise ValueError(
            f"{dataset.root} has {len(moments)} chunks of {action_horizon} actions; give a smaller "
            "action_horizon, or record more"
        )
    chosen = moments[np.unique(np.linspace(0, len(moments) - 1, 2 * NUM_CHUNKS).round().astype(int))]
    chunks = dataset.actions[chosen[:, None] + np.arange(action_horizon)].astype(np.float32)
    return Chunks(
        name="chunks of the recording", spec=dataset.robot_spec, fitted=chunks[::2], tried=chunks[1::2]
    )


def check_codec(config: Mapping[str, Any], kinds: list[Chunks]) -> Examination:
    """Fit a codec, try it and note what is wrong.

    Args:
        config: ``{"kind": name, setting: value, ...}``.
        kinds: of chunks, each with a codec fitted to it.
    """
    seen = Examination()
    for chunks in kinds:
        codec = seen.tried(
            partial(
                CODECS.build,
                config,
                actions=chunks.fitted.reshape(-1, chunks.fitted.shape[-1]),
                chunks=chunks.fitted,
                low=chunks.spec.action_low,
                high=chunks.spec.action_high,
            ),
            "codec_raises",
            what=_RAISES,
            place=chunks.name,
        )
        if codec is None or not _has_form(seen, codec, chunks):
            continue
        for what, look in LOOKS.items():
            seen.tried(partial(look, seen, codec, chunks, what), "codec_raises", what=what, place=chunks.name)
    return seen


def _encoded(codec: ActionCodec, actions: Float32[np.ndarray, "chunk time action"]) -> Arrays:
    return codec.encode(actions.copy(), np.ones(actions.shape[:2], bool))


def _round(codec: ActionCodec, actions: Float32[np.ndarray, "chunk time action"]) -> np.ndarray:
    return codec.decode(_encoded(codec, actions))


def _has_form(seen: Examination, codec: ActionCodec, chunks: Chunks) -> bool:
    what, actions = "arrays as specs() says", chunks.tried
    wanted = f"float32{list(actions.shape)}"
    try:
        arrays = _encoded(codec, actions)
        require_form(arrays, codec.specs(), num_samples=len(actions), made_by=codec)
        decoded = codec.decode(arrays)
        found = f"{decoded.dtype}{list(decoded.shape)}"
        if found != wanted:
            raise ValueError(f"decode returns {found}; {wanted} is needed")
        sizes = codec.action_horizon, codec.action_dim
        if sizes != actions.shape[1:]:
            raise ValueError(f"action_horizon and action_dim are {sizes}; they are {actions.shape[1:]}")
    except Exception as error:  # noqa: BLE001  whatever code of the user may raise is what is looked for
        seen.found("codec_form", "error", raised(error), what=what, place=chunks.name)
        return False
    listed = ", ".join(f"{name} {one.dtype}{list(one.shape)}" for name, one in codec.specs().items())
    seen.passed(what, listed, place=chunks.name)
    return True


def _round_trip(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    """Compare actions with what comes back, channel by channel, in units and of what the channel spans."""
    actions = chunks.tried
    errors = np.abs(_round(codec, actions).astype(np.float64) - actions)
    flat = actions.reshape(-1, actions.shape[-1])
    spans = np.quantile(flat, 0.99, axis=0) - np.quantile(flat, 0.01, axis=0)
    for column, channel in enumerate(chunks.spec.action):
        mean, most = float(errors[..., column].mean()), float(errors[..., column].max())
        span = max(float(spans[column]), 1e-3 * (channel.high - channel.low))
        share = mean / span
        unit = "" if channel.unit == "1" else f" {channel.unit}"
        message = f"mean error {mean:.2g}{unit}, at most {most:.2g}{unit}: {share:.1%} of what it spans"
        if share <= LOSES:
            seen.passed(what, message, place=f"{chunks.name}, {channel.name}")
            continue
        severity = "error" if share > LOSES_MUCH else "warning"
        where = f"action/{channel.name}"
        seen.found("codec_loses", severity, message, what=what, place=chunks.name, channel=where)
    return True


def _bounds(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    low, high = chunks.spec.action_low, chunks.spec.action_high
    middle, half = (low + high) / 2, (high - low) / 2
    beyond = (middle + 3 * (chunks.tried - middle)).astype(np.float32)  # up to three times the range
    decoded = np.concatenate([_round(codec, chunks.tried), _round(codec, beyond)]).astype(np.float64)
    excess = ((np.abs(decoded - middle) - half) / half).max(axis=(0, 1))
    worst = int(excess.argmax())
    if excess[worst] > _STEADY or not np.isfinite(decoded).all():
        channel = chunks.spec.action[worst]
        least, most = decoded[..., worst].min(), decoded[..., worst].max()
        limits = f"{channel.low:g} to {channel.high:g} {channel.unit}"
        message = f"it decodes to {least:.5g} to {most:.5g}; the limits are {limits}"
        where = f"action/{channel.name}"
        seen.found("codec_bounds", "error", message, what=what, place=chunks.name, channel=where)
    else:
        seen.passed(what, "also for actions of three times the range", place=chunks.name)
    return True


def _unlike(one: Arrays, other: Arrays) -> list[str]:
    return [name for name in one if not np.array_equal(one[name], other[name])]


def _steady(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    actions = chunks.tried.copy()
    encoded = codec.encode(actions, np.ones(actions.shape[:2], bool))
    first = {name: array.copy() for name, array in encoded.items()}
    given = {name: array.copy() for name, array in first.items()}
    decoded = codec.decode(given).copy()
    reasons = [
        f"encode changes {name!r} from call to call" for name in _unlike(first, _encoded(codec, chunks.tried))
    ]
    reasons += [f"decode writes into {name!r}" for name in _unlike(first, given)]
    if not np.array_equal(actions, chunks.tried):
        reasons.append("encode writes into the actions")
    if not np.array_equal(decoded, codec.decode(first)):
        reasons.append("decode returns other actions the second time")
    for reason in reasons:
        seen.found("codec_unsteady", "error", reason, what=what, place=chunks.name)
    span = chunks.spec.action_high - chunks.spec.action_low
    moved = float((np.abs(_round(codec, decoded) - decoded) / span).max())
    if moved > _STEADY:
        message = f"decoded actions move by up to {moved:.2%} of the range when they are encoded again"
        seen.found("codec_drifts", "warning", message, what=what, place=chunks.name)
    elif not reasons:
        seen.passed(what, "twice; what it decodes it encodes to the same actions", place=chunks.name)
    return True


def _batch(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    together = _encoded(codec, chunks.tried)
    for index in (0, len(chunks.tried) - 1):
        alone = _encoded(codec, chunks.tried[index : index + 1])
        unlike = _unlike(alone, {name: array[index : index + 1] for name, array in together.items()})
        if unlike:
            message = f"chunk {index} gives another {unlike[0]!r} alone than among {len(chunks.tried)}"
            seen.found("codec_batch", "error", message, what=what, place=chunks.name)
            return True
    seen.passed(what, "", place=chunks.name)
    return True


def _stored(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    data = json.loads(json.dumps(codec.to_json()))
    registered = CODECS.names()
    if data.get("kind") not in registered or not isinstance(codec, CODECS.get(data["kind"])):
        message = f"to_json writes the kind {data.get('kind')!r}, which is no name of this codec"
        seen.found("codec_json", "error", message, what=what, place=chunks.name)
        return True
    again = CODECS.get(data["kind"]).from_json(data)
    encoded = _encoded(codec, chunks.tried)
    unlike = _unlike(encoded, _encoded(again, chunks.tried))
    if not unlike and not np.array_equal(codec.decode(encoded), again.decode(encoded)):
        unlike = ["the decoded actions"]
    if unlike:
        message = f"{unlike[0]} differ after to_json and from_json"
        seen.found("codec_json", "error", message, what=what, place=chunks.name)
    else:
        seen.passed(what, f"{len(json.dumps(data))} characters of JSON", place=chunks.name)
    return True


def _takes_nan(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    taken = []
    for value in (np.nan, np.inf):
        actions = chunks.tried[:2].copy()
        actions[1, -1, -1] = value
        try:
            _encoded(codec, actions)
        except ValueError:
            continue
        taken.append(f"{value}")
    if taken:
        message = f"encode takes an action that is {' or '.join(taken)}"
        seen.found("codec_takes_nan", "error", message, what=what, place=chunks.name)
    else:
        seen.passed(what, "NaN and infinity", place=chunks.name)
    return True


def _spoiled(good: Arrays, specs: Mapping[str, ArraySpec]) -> dict[str, dict[str, np.ndarray]]:
    """Return answers that stand for no action, by what is wrong with them."""
    answers = {}
    for name, spec in specs.items():
        rest = {key: array.copy() for key, array in good.items()}
        array = rest.pop(name)
        answers[f"no {name!r}"] = rest
        answers[f"{name!r} with an axis too many"] = {**rest, name: array[..., None]}
        if spec.num_ids:
            for value in (spec.num_ids, -2):
                answers[f"{name!r} with the id {value} (there are {spec.num_ids})"] = {
                    **rest,
                    name: np.full_like(array, value),
                }
            answers[f"{name!r} as float32"] = {**rest, name: array.astype(np.float32)}
        else:
            broken = array.copy()
            broken.reshape(-1)[-1] = np.nan
            answers[f"{name!r} with NaN"] = {**rest, name: broken}
    return answers


def _decodes_nonsense(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    wrong = []
    answers = _spoiled(_encoded(codec, chunks.tried[:2]), codec.specs())
    for about, answer in answers.items():
        try:
            codec.decode(answer)
        except DecodeError:
            continue
        except Exception as error:  # noqa: BLE001  any other error is what is looked for
            wrong.append(f"{about}: {raised(error)} in place of DecodeError")
        else:
            wrong.append(f"{about}: decoded as if it were an action")
    for message in wrong:
        seen.found("codec_decodes_nonsense", "error", message, what=what, place=chunks.name)
    if not wrong:
        seen.passed(what, "; ".join(answers), place=chunks.name)
    return True


def _committed(seen: Examination, codec: ActionCodec, chunks: Chunks, what: str) -> bool:
    actions = chunks.tried[:3]
    counts = np.minimum(np.arange(len(actions)), codec.action_horizon - 1).astype(np.int64)
    counted = codec.encode_committed(actions, counts)
    reasons = []
    try:
        require_form(counted, codec.committed_specs(), num_samples=len(actions), made_by=codec)
    except ValueError as error:
        reasons.append(str(error))
    others = chunks.tried[-len(actions) :].copy()
    is_counted = np.arange(actions.shape[1]) < counts[:, None]
    others[is_counted] = actions[is_counted]
    unlike = _unlike(counted, codec.encode_committed(others, counts))
    if unlike:
        reasons.append(f"{unlike[0]!r} depends on actions that are not committed")
    if counts[-1]:
        others[-1, 0, 0] = np.nan
        try:
            codec.encode_committed(others, counts)
            reasons.append("encode_committed takes a committed action that is NaN")
        except ValueError:
            pass
    for reason in reasons:
        seen.found("codec_committed", "error", reason, what=what, place=chunks.name)
    if not reasons:
        seen.passed(what, f"0 to {counts[-1]} of them", place=chunks.name)
    return True


LOOKS: Mapping[str, Callable[[Examination, ActionCodec, Chunks, str], bool]] = {
    "encoded and decoded again": _round_trip,
    "within the limits": _bounds,
    "same in, same out": _steady,
    "a chunk alone, as in a batch": _batch,
    "stored and read back": _stored,
    "refuses what is not finite": _takes_nan,
    "refuses illegal answers": _decodes_nonsense,
    "committed actions": _committed,
}
