"""How far a policy's actions are from recorded ones, for robots that no simulator here has.

Small errors do not prove that a policy does its task, as nobody sees where it would have led the robot; large
ones on episodes that it was not trained on prove that it has learned little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from tqdm import tqdm

from experiments.reports.tables import format_table
from vla.data.demonstrations import DemonstrationSource
from vla.errors import Refusal
from vla.interface import Policy
from vla.spec import RobotSpec

BATCH = 16
_RESAMPLES = 2000


class NothingHeldOut(Refusal):
    """A policy was trained on every episode of a recording."""


@dataclass(frozen=True, kw_only=True)
class ChannelError:
    """Errors of one action channel, in its unit: means over the periods of all episodes.

    Attributes:
        name: of the channel.
        unit: its unit.
        error: mean absolute error.
        low: of its 95 % bootstrap interval over episodes; None with fewer than two episodes.
        high: the same.
        still: the error of one that stays at the command before the chunk, for comparison.
    """

    name: str
    unit: str
    error: float
    low: float | None
    high: float | None
    still: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One episode: what was recorded, and what the policy would have done, chunk after chunk."""

    recorded: Float32[np.ndarray, "time action"]
    predicted: Float32[np.ndarray, "time action"]


@dataclass(frozen=True, kw_only=True)
class OfflineEvaluation:
    """A policy against recorded episodes."""

    spec: RobotSpec
    channels: Sequence[ChannelError]
    num_episodes: int
    num_moments: int
    what: str  # which episodes, in words
    trace: Trace  # of the episode in the middle by its error

    def table(self) -> str:
        """Return errors by channel, as printed."""
        return format_table(*error_rows(self))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the trace."""
        return {
            "episodes": self.num_episodes,
            "moments": self.num_moments,
            "what": self.what,
            "channels": [vars(channel) for channel in self.channels],
        }


def error_rows(evaluation: OfflineEvaluation) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of errors."""
    header = ["action", "unit", "mean absolute error [95 %]", "staying still", "ratio"]
    rows = []
    for one in evaluation.channels:
        interval = "" if one.low is None else f" [{one.low:.3g}, {one.high:.3g}]"
        ratio = f"{one.error / one.still:.2f}" if one.still > 0 else "-"
        rows.append([one.name, one.unit, f"{one.error:.3g}{interval}", f"{one.still:.3g}", ratio])
    return header, rows


def unseen_episodes(
    source: DemonstrationSource, *, trained: Sequence[str], held_out: Sequence[str]
) -> tuple[dict[str, Int64[np.ndarray, " windows"]], str]:
    """Return the windows of the episodes that a policy was not trained on, by episode, and which they are.

    Args:
        source: all of a recording.
        trained: fingerprints of the episodes trained on.
        held_out: fingerprints of those that were held out.

    Raises:
        NothingHeldOut: there is none.
    """
    episodes, seen = source.windows.episodes(), set(trained)
    unseen = {digest: indices for digest, indices in episodes.items() if digest not in seen}
    if not unseen:
        raise NothingHeldOut(
            f"the policy was trained on all {len(episodes)} episodes of this recording: errors on them would "
            "say nothing. Train with data.validation_share=0.1, say, or give another recording"
        )
    kept = len(set(unseen) & set(held_out))
    others = len(unseen) - kept
    parts = [f"{kept} held out in training"] * bool(kept) + [f"{others} of another recording"] * bool(others)
    return unseen, ", ".join(parts)


def evaluate_offline(
    policy: Policy,
    source: DemonstrationSource,
    episodes: Mapping[str, Int64[np.ndarray, " windows"]],
    *,
    execute_horizon: int,
    what: str,
    progress: bool = True,
) -> OfflineEvaluation:
    """Compare a policy's actions with recorded ones.

    It is asked every `execute_horizon` periods of an episode, as on a robot, and that many of its actions are
    compared with those recorded then.

    Args:
        policy: to be measured.
        source: of the recorded windows.
        episodes: windows of each episode, in order.
        execute_horizon: control periods from one inference to the next.
        what: which episodes these are, in words.
        progress: show a bar.

    Raises:
        ValueError: `execute_horizon` is beyond the policy's horizon.
        ObservationError, DecodeError: the policy's own.
    """
    if not 1 <= execute_horizon <= policy.action_horizon:
        raise ValueError(
            f"evaluation.execute_horizon is {execute_horizon}; it must lie in [1, {policy.action_horizon}], "
            "as the policy predicts that many actions"
        )
    traces, still = [], []
    num_moments = 0
    with tqdm(total=len(episodes), desc="comparing", unit="episode", disable=not progress) as bar:
        for indices in episodes.values():
            asked = indices[::execute_horizon]
            num_moments += len(asked)
            traces.append(_trace(policy, source, indices, asked, execute_horizon))
            still.append(_staying_still(source, indices, execute_horizon))
            bar.update()
    spec = source.windows.robot_spec
    channels = _channel_errors(spec, traces, np.array(still))
    mean = np.maximum([channel.error for channel in channels], 1e-12)
    relative = np.array([(np.abs(one.predicted - one.recorded).mean(axis=0) / mean).mean() for one in traces])
    return OfflineEvaluation(
        spec=spec,
        channels=channels,
        num_episodes=len(traces),
        num_moments=num_moments,
        what=what,
        trace=traces[int(np.argsort(relative)[len(relative) // 2])],
    )


def _channel_errors(
    spec: RobotSpec, traces: Sequence[Trace], still: Float64[np.ndarray, "episode action"]
) -> list[ChannelError]:
    errors = np.array([np.abs(one.predicted - one.recorded).mean(axis=0) for one in traces], np.float64)
    lengths = np.array([len(one.recorded) for one in traces], np.float64)
    low, high = _bootstrap(errors, lengths)
    mean, mean_still = (np.average(values, axis=0, weights=lengths) for values in (errors, still))
    return [
        ChannelError(
            name=channel.name,
            unit=channel.unit,
            error=float(mean[i]),
            low=None if low is None else float(low[i]),
            high=None if high is None else float(high[i]),
            still=float(mean_still[i]),
        )
        for i, channel in enumerate(spec.action)
    ]


def _trace(
    policy: Policy,
    source: DemonstrationSource,
    indices: Int64[np.ndarray, " windows"],
    asked: Int64[np.ndarray, " asked"],
    execute_horizon: int,
) -> Trace:
    recorded = source.windows.chunks(indices)[0][:, 0]
    parts = []
    for start in range(0, len(asked), BATCH):
        chunks = policy.predict(source.observations(asked[start : start + BATCH]))
        parts.append(chunks[:, :execute_horizon].reshape(-1, chunks.shape[-1]))
    return Trace(recorded=recorded, predicted=np.concatenate(parts)[: len(recorded)])


def _staying_still(
    source: DemonstrationSource, indices: Int64[np.ndarray, " windows"], execute_horizon: int
) -> Float64[np.ndarray, " action"]:
    """Return the error of keeping the command before each chunk: positions stay, changes are zero."""
    spec = source.windows.robot_spec
    recorded = source.windows.chunks(indices)[0][:, 0].astype(np.float64)
    if not spec.gives_positions:
        return np.abs(recorded).mean(axis=0)
    before = np.maximum(np.arange(len(recorded)) // execute_horizon * execute_horizon - 1, 0)
    return np.abs(recorded - recorded[before]).mean(axis=0)


def _bootstrap(
    errors: Float64[np.ndarray, "episode action"], lengths: Float64[np.ndarray, " episode"]
) -> tuple[Float64[np.ndarray, " action"] | None, Float64[np.ndarray, " action"] | None]:
    """Return the 95 % percentile interval of the mean error, over episodes drawn again and again."""
    if len(errors) < 2:
        return None, None
    drawn = np.random.default_rng(0).integers(0, len(errors), (_RESAMPLES, len(errors)))
    weights = lengths[drawn]
    means = (errors[drawn] * weights[..., None]).sum(axis=1) / weights.sum(axis=1)[:, None]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high
