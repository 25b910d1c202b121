"""What a server has done: counts, and percentiles of the last latencies. Used from one thread.

It keeps numbers only: no observation, instruction, address or token passes through here.
"""

import collections
from typing import Any

import numpy as np

WINDOW = 2048  # latencies of each kind that percentiles are computed from
KINDS = ("request", "queue", "inference")
PERCENTILES = (50, 90, 99)


class ServerMetrics:
    """Counts since the start, and windows of latencies [s]."""

    def __init__(self) -> None:
        self.connections_open = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self._errors: collections.Counter[str] = collections.Counter()
        self._refused: collections.Counter[str] = collections.Counter()
        self._latencies = {kind: collections.deque[float](maxlen=WINDOW) for kind in KINDS}

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
                "refused": dict(self._refused),
            },
            "requests": {
                "received": self.counts["received"],
                "answered": self.counts["answered"],
                "episodes": self.counts["episodes"],
                "errors": dict(self._errors),
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
