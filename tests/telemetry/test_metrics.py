"""Metrics are per process, countable, and their labels stay few."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tokensvc.telemetry.counting import LoopHistogram
from tokensvc.telemetry.metrics import Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_every_outcome_is_counted_under_its_labels() -> None:
    metrics = Metrics()
    metrics.token_issued("local", "eu-central-1")
    metrics.token_issued("local", "eu-central-1")
    metrics.item_refused("invalid_request")
    metrics.request_answered("POST", "/v1/tokens", 201, "")
    metrics.minted(0.0002)
    metrics.canary_signed("eu-central-1", ok=False)
    samples = _samples(metrics)

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("tokensvc_tokens_issued_total", issuer="local", region="eu-central-1") == 2
    assert value("tokensvc_batch_items_refused_total", code="invalid_request") == 1
    assert (
        value(
            "tokensvc_http_requests_total", method="POST", route="/v1/tokens", status="201", code=""
        )
        == 1
    )
    assert value("tokensvc_mint_seconds_count") == 1
    assert value("tokensvc_signer_canary_ok", region="eu-central-1") == 0


def test_a_views_age_is_taken_at_the_scrape() -> None:
    metrics = Metrics()
    age = 1.0
    metrics.watch_age("ring", lambda: age)
    key = ("tokensvc_view_age_seconds", frozenset({("view", "ring")}))
    assert _samples(metrics)[key] == 1.0
    age = 7.5
    assert _samples(metrics)[key] == 7.5


def test_a_refused_policy_file_is_seen_at_the_scrape() -> None:
    metrics = Metrics()
    refused = False
    metrics.watch_policy(lambda: refused)
    assert _samples(metrics)["tokensvc_policy_file_refused", frozenset()] == 0
    refused = True
    assert _samples(metrics)["tokensvc_policy_file_refused", frozenset()] == 1


def test_two_services_in_one_process_do_not_share_counters() -> None:
    first, second = Metrics(), Metrics()
    first.token_issued("ivs", "us-east-1")
    assert b'issuer="ivs"' not in second.render()


def test_the_endpoint_caches_own_counts_are_reported() -> None:
    metrics = Metrics()
    metrics.watch_lookups(lambda: {"hit": 3, "stale": 1})
    samples = _samples(metrics)
    name = "tokensvc_stage_endpoint_lookups_total"
    assert samples[name, frozenset({("outcome", "hit")})] == 3
    assert samples[name, frozenset({("outcome", "stale")})] == 1


def test_circuits_and_clocks_are_reported_by_region() -> None:
    metrics = Metrics()
    metrics.watch_circuits(
        lambda: {"eu-west-1": "closed", "us-east-1": "half_open", "us-west-2": "open"}
    )
    metrics.watch_clock(lambda: {"eu-west-1": -2.5})
    samples = _samples(metrics)

    def value(name: str, region: str) -> float:
        return samples[name, frozenset({("region", region)})]

    name = "tokensvc_fallback_circuit_open"
    assert [value(name, r) for r in ("eu-west-1", "us-east-1", "us-west-2")] == [0, 1, 1]
    assert value("tokensvc_clock_offset_seconds", "eu-west-1") == -2.5


def test_a_histogram_counts_what_is_at_most_its_bounds():
    registry = CollectorRegistry(auto_describe=False)
    counted = LoopHistogram("seconds", "Of a test.", (0.5, 1.0))
    plain = Histogram("plain", "Of a test.", buckets=(0.5, 1.0), registry=registry)
    registry.register(counted)
    for figure in (0.1, 0.5, 0.75, 1.0, 7.0):
        counted.observe(figure)
        plain.observe(figure)
    lines = [
        line for line in generate_latest(registry).decode().splitlines() if "_created" not in line
    ]
    ours = [line for line in lines if "seconds" in line]
    theirs = [line.replace("plain", "seconds") for line in lines if "plain" in line]
    assert ours == theirs
    assert len(ours) == 7
