"""Checks of time stamps against the declared rate."""

import numpy as np
from jaxtyping import Float64

from vla.data import tables
from vla.data.layout import DATA_PATH
from vla.data.quality.findings import Finding, found
from vla.data.quality.recording import Recording
from vla.data.reader import Dataset

GAP, DOUBLED = 1.5, 0.1  # in periods of the declared rate, from one frame to the next
DRIFT = 0.25  # in periods: the reader takes no frame that is farther from its stamp
RATE = 0.02  # relative


def read_times(dataset: Dataset) -> Float64[np.ndarray, " N"] | None:
    """Return `timestamp` of every frame as stored [s], NaN where null; None if a file has no such column.

    Raises:
        DatasetError: a data file is damaged.
    """
    parts = []
    pattern = dataset.info.get("data_path") or DATA_PATH
    for path in tables.data_files(dataset.root, dataset.episodes, pattern):
        with tables.open_parquet(path) as file:
            if "timestamp" not in file.schema_arrow.names:
                return None
        column = tables.read_table(path, ["timestamp"])["timestamp"]
        parts.append(column.to_numpy().astype(np.float64))
    return np.concatenate(parts)[: dataset.num_frames]


def check_times(recording: Recording) -> list[Finding]:
    """Find time stamps that are missing, doubled, drifting, or of another rate than the declared one."""
    times = read_times(recording.dataset)
    if times is None:
        return [
            found(
                "time_missing",
                "warning",
                "the data files have no column `timestamp`: a constant rate is assumed",
            )
        ]
    period = 1.0 / float(recording.dataset.info["fps"])
    steps = np.diff(times)[recording.follows] / period
    typical = float(np.median(steps[np.isfinite(steps)])) if np.isfinite(steps).any() else 1.0
    if abs(typical - 1) > RATE:
        rate = 1 / (typical * period) if typical > 0 else float("inf")
        message = f"time stamps are {rate:.4g} Hz apart, meta/info.json says {1 / period:.4g} Hz"
        return [found("control_rate", "error", message)]
    faults: dict[str, list[int]] = {"time_missing": [], "time_doubled": [], "time_gaps": [], "time_drift": []}
    worst = dict.fromkeys(faults, 0.0)
    for number, episode in enumerate(recording.episodes):
        check, size = _fault(times[episode] / period)
        if check:
            faults[check].append(number)
            worst[check] = max(worst[check], size)
    words = {
        "time_missing": "time stamps are null or NaN: {n}",
        "time_doubled": "a frame has the time stamp of the frame before it, or an earlier one: {n}",
        "time_gaps": "frames are missing, up to {worst:.1f} periods between two frames: {n}",
        "time_drift": "time stamps are up to {worst:.2f} periods from frame / rate: {n}",
    }
    return [
        found(
            check,
            "error",
            words[check].format(n=recording.count(where), worst=worst[check]),
            episodes=where,
        )
        for check, where in faults.items()
        if where
    ]


def _fault(times: Float64[np.ndarray, " time"]) -> tuple[str, float]:
    """Return the check that stamps in periods fail, if any, and by how much."""
    if not np.isfinite(times).all():
        return "time_missing", 0.0
    steps = np.diff(times)
    if steps.size and steps.min() < DOUBLED:
        return "time_doubled", 0.0
    if steps.size and steps.max() > GAP:
        return "time_gaps", float(steps.max())
    drift = float(np.abs(times - np.arange(len(times))).max())
    return ("time_drift", drift) if drift > DRIFT else ("", 0.0)
