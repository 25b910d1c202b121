import re

from policies.serving.metrics import BUCKETS_S, KINDS, ServerMetrics
from policies.serving.prometheus import prometheus_text, wants_text

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


def samples_of(text):
    assert text.endswith("\n")
    found, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("# "):
            match = SAMPLE.match(line)
            assert match, line
            assert any(match["name"].startswith(name) for name in typed), line
            key = (match["name"], match["labels"] or "")
            assert key not in found, line
            found[key] = float(match["value"])
    return found


def filled():
    metrics = ServerMetrics()
    for seconds in (0.0005, 0.002, 0.03, 7.0):
        metrics.answer(request_s=seconds, queue_s=0.0, inference_s=seconds)
    metrics.refuse('a "quoted"\nreason')
    return metrics


def test_histograms_are_cumulative_and_end_in_the_count():
    samples = samples_of(prometheus_text(filled(), policy_id="ab", is_ready=True, uptime_s=2.5))
    for kind in KINDS:
        bounds = [f'kind="{kind}",le="{bound:g}"' for bound in BUCKETS_S] + [f'kind="{kind}",le="+Inf"']
        counts = [samples["vla_server_latency_seconds_bucket", label] for label in bounds]
        assert counts == sorted(counts)
        assert counts[-1] == samples["vla_server_latency_seconds_count", f'kind="{kind}"'] == 4
    assert (
        samples["vla_server_latency_seconds_bucket", 'kind="request",le="0.002"'] == 2
    )  # bounds are inclusive
    assert samples["vla_server_latency_seconds_sum", 'kind="request"'] == 0.0005 + 0.002 + 0.03 + 7.0


def test_labels_are_escaped_and_an_unknown_policy_is_left_out():
    text = prometheus_text(filled(), policy_id=None, is_ready=False, uptime_s=0.0)
    samples = samples_of(text)
    assert samples["vla_server_connections_refused_total", r'reason="a \"quoted\"\nreason"'] == 1
    assert samples["vla_server_ready", ""] == 0
    assert "policy_info" not in text


def test_prometheus_gets_text_and_others_get_json():
    assert wants_text(["application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3"])
    assert not wants_text(["application/json"])
    assert not wants_text(["*/*"])
    assert not wants_text([])
