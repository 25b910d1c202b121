"""What a server has done: counts, histograms, and percentiles of the last latencies. Used from one thread.

It keeps numbers only: no observation, instruction, address or token passes through here. How they are
written for Prometheus is in prometheus.py.
"""

import bisect
import collections
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 2048  # latencies of each kind that percentiles are computed from
KINDS = ("request", "queue", "inference")
PERCENTILES = (50, 90, 99)
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # upper bounds, inclusive


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """All latencies of a kind since the start."""

    at_most: tuple[int, ...]  # how many took at most each bound of `BUCKETS_S`
    count: int
    total_s: float


class ServerMetrics:
    """Counts and histograms since the start, and windows of latencies [s]."""

    def __init__(self) -> None:
        self.connections_open = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self._errors: collections.Counter[str] = collections.Counter()
        self._refused: collections.Counter[str] = collections.Counter()
        self._latencies = {kind: collections.deque[float](maxlen=WINDOW) for kind in KINDS}
        # The last bucket has no bound.
        self._in_bucket: dict[str, list[int]] = {kind: [0] * (len(BUCKETS_S) + 1) for kind in KINDS}
        self._total_s: dict[str, float] = dict.fromkeys(KINDS, 0.0)

    @property
    def errors(self) -> Mapping[str, int]:
        """How many requests were answered with an error, by its code."""
        return dict(self._errors)

    @property
    def refused(self) -> Mapping[str, int]:
        """How many connections were not accepted, by the reason."""
        return dict(self._refused)

    def refuse(self, reason: str) -> None:
        """Count a connection that was not accepted."""
        self._refused[reason] += 1

    def error(self, code: str) -> None:
        """Count a request that was answered with an error."""
        self._errors[code] += 1

    def answer(self, *, request_s: float, queue_s: float, inference_s: float) -> None:
        """Count a request that was answered, with its latencies in seconds."""
        self.counts["answered"] += 1
        for kind, seconds in zip(KINDS, (request_s, queue_s, inference_s), strict=True):
            self._latencies[kind].append(seconds)
            self._in_bucket[kind][bisect.bisect_left(BUCKETS_S, seconds)] += 1
            self._total_s[kind] += seconds

    def histogram(self, kind: str) -> Histogram:
        """Return how long all requests of the server's life took, of one of `KINDS`."""
        *bounded, count = itertools.accumulate(self._in_bucket[kind])
        return Histogram(at_most=tuple(bounded), count=count, total_s=self._total_s[kind])

    def percentiles_ms(self, kind: str) -> dict[str, float]:
        """Return p50, p90 and p99 of a kind in milliseconds; empty before the first answer."""
        window = self._latencies[kind]
        if not window:
            return {}
        values = np.percentile(np.fromiter(window, dtype=np.float64), PERCENTILES) * 1e3
        return {f"p{p}": round(float(value), 3) for p, value in zip(PERCENTILES, values, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {
            "connections": {
                "open": self.connections_open,
                "accepted": self.counts["accepted"],
                "refused": self.refused,
            },
            "requests": {
                "received": self.counts["received"],
                "answered": self.counts["answered"],
                "episodes": self.counts["episodes"],
                "errors": self.errors,
            },
            "latency_ms": {kind: self.percentiles_ms(kind) for kind in KINDS},
        }

    def line(self) -> str:
        """Return one line for a terminal."""
        request, inference = self.percentiles_ms("request"), self.percentiles_ms("inference")
        latency = (
            f"request p50 {request['p50']:.1f} p99 {request['p99']:.1f} ms, "
            f"inference p50 {inference['p50']:.1f} ms"
            if request
            else "no request yet"
        )
        return (
            f"{self.connections_open} connected, {self.counts['answered']} answered, "
            f"{sum(self._errors.values())} errors, {sum(self._refused.values())} refused; {latency}"
        )
