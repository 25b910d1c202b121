"""Tables of Franka trials, for the terminal and for experiments/results. Runs nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from envs.evaluation.statistics import wilson_interval
from experiments.franka.trial import Trial
from experiments.reports.tables import format_table, markdown_table


def _number(value: float | None, places: int = 2) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def trial_rows(trials: Sequence[Trial]) -> list[list[str]]:
    """Return a row for each trial."""
    return [
        [
            str(one.seed),
            "yes" if one.success else "no",
            _number(one.seconds, 1),
            _number(one.inference_ms, 0),
            str(one.missed_periods),
            _number(one.realtime_factor),
            str(one.recorded_violations + one.audit.violations),
            _number(one.audit.acceleration),
            _number(one.audit.jerk),
        ]
        for one in trials
    ]


TRIAL_HEADER = (
    "seed",
    "reached",
    "seconds",
    "inference ms",
    "missed",
    "real time",
    "violations",
    "acceleration",
    "jerk",
)
FAULT_HEADER = (
    "server",
    "runs",
    "to hold s",
    "hold delay",
    "to STOPPED s",
    "to rest s",
    "oldest action s",
    "violations",
)


def trial_table(trials: Sequence[Trial]) -> str:
    """Return the trials without faults as text."""
    return format_table(TRIAL_HEADER, trial_rows(trials))


def _span(values: Sequence[float | None], places: int = 2) -> str:
    """Return least, median and greatest of what there is."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    least, middle, most = np.percentile(there, [0, 50, 100])
    missing = f" (of {len(there)})" if len(there) < len(values) else ""
    return f"{least:.{places}f}/{middle:.{places}f}/{most:.{places}f}{missing}"


def fault_rows(faults: Sequence[Trial]) -> list[list[str]]:
    """Return a row for each kind of fault: least, median and greatest."""
    rows = []
    for kind in dict.fromkeys(one.fault for one in faults):
        some = [one for one in faults if one.fault == kind]
        times = [one.times for one in some if one.times is not None]
        rows.append(
            [
                kind,
                str(len(some)),
                _span([one.to_hold_s for one in times]),
                _span([one.hold_delay_periods for one in times], 0),
                _span([one.to_stopped_s for one in times]),
                _span([one.to_rest_s for one in times]),
                _span([one.oldest_action_s for one in times]),
                str(sum(one.recorded_violations + one.audit.violations for one in some)),
            ]
        )
    return rows


def fault_table(faults: Sequence[Trial]) -> str:
    """Return the trials with faults as text, one line per kind."""
    return format_table(FAULT_HEADER, fault_rows(faults))


def _chunk(faults: Sequence[Trial]) -> str:
    return _number(max((one.chunk_s for one in faults), default=None))


def report(results: Mapping[str, Any], trials: Sequence[Trial], faults: Sequence[Trial]) -> str:
    """Return what `results` says, as a page of Markdown."""
    reached = sum(one.success for one in trials)
    interval = wilson_interval(reached, len(trials)) if trials else None
    rate = f" [{interval.low:.0%}, {interval.high:.0%}]" if interval is not None else ""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"""# A Franka arm through franky, simulated by franky-sim

`{results["command"]}`

{results["machine"]}; {versions}.
Policy: {results["policy"]}. Time: {results["time"]}. Every trial is in the JSON file next to this page. No
real arm was tried.

## Trials

Reach, the hand within 3 cm of its place above the named object for five control periods: **{reached} of
{len(trials)}**{rate}. *Violations* counts broken limits: those of the configuration, by the commands
recorded at control rate, and the robot's own (10 rad/s2, 5000 rad/s3, speeds and ranges of the FR3), by what
was sent in every millisecond. *Acceleration* and *jerk* are the largest shares of the latter that any joint
used. *Real time* is the arm's clock against the wall's.

{markdown_table(TRIAL_HEADER, trial_rows(trials))}

## The policy server fails mid-motion

The server is killed (SIGKILL), stopped (SIGSTOP), or slowed to a tenth or a hundredth (crawling) of its time,
when the hand has come 3 cm. Each cell: least/median/greatest. *To hold*: until the first period that held;
until then the arm executes what was predicted, at most a chunk ({_chunk(faults)} s). *Hold delay*: periods
between the last executed action and the first that held; 0 means the very next. *To rest*: until no joint was
measured to move faster than 0.02 rad/s. A server slowed to a tenth still answers before the chunk is over.

{markdown_table(FAULT_HEADER, fault_rows(faults))}
"""
