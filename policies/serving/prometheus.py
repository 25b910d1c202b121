"""A server's numbers as Prometheus reads them: its text format, version 0.0.4, and when to send it.

Every latency is a histogram since the start, in seconds; percentiles are left to whoever reads.
"""

from collections.abc import Mapping, Sequence

from policies.serving.metrics import BUCKETS_S, KINDS, ServerMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TYPES = ("text/plain", "application/openmetrics-text")  # what Prometheus asks for


def wants_text(accept: Sequence[str]) -> bool:
    """Return whether a client that sent these `Accept` headers is a Prometheus; others are given JSON."""
    ranges = [one.partition(";")[0].strip().lower() for line in accept for one in line.split(",")]
    return any(one in _TYPES for one in ranges)


def prometheus_text(metrics: ServerMetrics, *, policy_id: str | None, is_ready: bool, uptime_s: float) -> str:
    """Return all numbers in the text format, the last line ended.

    Args:
        metrics: what was counted.
        policy_id: sha256 of the bundle, None before it is loaded.
        is_ready: whether requests are answered now.
        uptime_s: since the server began [s].
    """
    counts = metrics.counts
    lines = [
        *_single("ready", "gauge", "Whether requests are answered.", float(is_ready)),
        *_single("uptime_seconds", "gauge", "Time since the server began.", uptime_s),
        *_single("connections_open", "gauge", "Sessions.", metrics.connections_open),
        *_single("connections_accepted_total", "counter", "Sessions begun.", counts["accepted"]),
        *_labeled("connections_refused_total", "Connections refused.", "reason", metrics.refused),
        *_single("requests_received_total", "counter", "Observations that came.", counts["received"]),
        *_single("requests_answered_total", "counter", "Observations answered.", counts["answered"]),
        *_labeled("request_errors_total", "Errors sent to clients.", "code", metrics.errors),
        *_single("episodes_total", "counter", "Episodes that clients began.", counts["episodes"]),
    ]
    if policy_id is not None:
        lines += _head("policy_info", "gauge", "The bundle that is served.")
        lines.append(_sample("policy_info", {"policy_id": policy_id}, 1))
    return "\n".join([*lines, *_latencies(metrics)]) + "\n"


def _latencies(metrics: ServerMetrics) -> list[str]:
    name = "latency_seconds"
    lines = _head(name, "histogram", "Request: arrival to answer; queue: before inference; inference.")
    for kind in KINDS:
        found = metrics.histogram(kind)
        bounds = [*(format(bound, "g") for bound in BUCKETS_S), "+Inf"]
        for bound, at_most in zip(bounds, (*found.at_most, found.count), strict=True):
            lines.append(_sample(f"{name}_bucket", {"kind": kind, "le": bound}, at_most))
        lines.append(_sample(f"{name}_sum", {"kind": kind}, found.total_s))
        lines.append(_sample(f"{name}_count", {"kind": kind}, found.count))
    return lines


def _single(name: str, kind: str, text: str, value: int | float) -> list[str]:
    return [*_head(name, kind, text), _sample(name, {}, value)]


def _labeled(name: str, text: str, label: str, values: Mapping[str, int]) -> list[str]:
    samples = [_sample(name, {label: key}, value) for key, value in sorted(values.items())]
    return [*_head(name, "counter", text), *samples]


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP vla_server_{name} {text}", f"# TYPE vla_server_{name} {kind}"]


def _sample(name: str, labels: Mapping[str, str], value: int | float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"vla_server_{name}{{{shown}}} {value!r}" if shown else f"vla_server_{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
