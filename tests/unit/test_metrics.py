"""Metrics: the sums of promise 2 in a single scrape, and names that Prometheus' own linter likes."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import LATENCY_BUCKETS_S, RequestDurations
from tests.support.metrics import buffer_with_everything, registry, scrape
from tests.support.samples import batch_of, reading

PROMTOOL = shutil.which("promtool")


def test_in_every_scrape_all_that_was_accepted_has_ended_in_one_way_or_is_held() -> None:
    said = scrape(registry(buffer_with_everything()))
    ends = {end: said[f"sensorflow_readings_{end}_total"] for end in ("committed", "rejected", "given_back")}
    assert ends == {"committed": 7, "rejected": 2, "given_back": 3}
    assert said["sensorflow_buffer_rows"] == 5
    assert said["sensorflow_readings_accepted_total"] == sum(ends.values()) + said["sensorflow_buffer_rows"]


def test_a_scrape_says_what_the_parts_know() -> None:
    said = scrape(registry(buffer_with_everything()))
    expected = {
        "sensorflow_buffer_bytes": batch_of([reading()] * 2).size_bytes + batch_of([reading()] * 3).size_bytes + 1_000,
        "sensorflow_flush_failures_total": 6,
        "sensorflow_buffer_max_rows": 20,
        "sensorflow_buffer_max_bytes": 1 << 20,
        "sensorflow_buffer_oldest_age_seconds": 4,
        "sensorflow_websocket_connections": 1,
        "sensorflow_websocket_messages_total": 5,
        "sensorflow_websocket_messages_conflated_total": 2,
        "sensorflow_websocket_dropped_total": 1,
        "sensorflow_flush_rows_sum": 4,
        "sensorflow_flush_duration_seconds_sum": 0.25,
        "sensorflow_ready": 1,
        "sensorflow_pool_connections": 4,
        "sensorflow_pool_available": 3,
        "sensorflow_pool_waiting": 0,
        "sensorflow_database_up": 1,
        "sensorflow_database_size_bytes": 7,
        "sensorflow_database_connections": 3,
        "sensorflow_database_clock_skew_seconds": -2.5,
        "sensorflow_latest_readings_age_seconds": 1.5,
    }
    assert {name: said[name] for name in expected} == expected


def test_a_database_that_is_away_has_no_size_but_is_said_to_be_down() -> None:
    said = scrape(registry(buffer_with_everything(), statistics=lambda: None))
    assert said["sensorflow_database_up"] == 0
    assert not {"sensorflow_database_size_bytes", "sensorflow_database_connections"} & said.keys()


def test_counters_end_in_total_and_units_are_base_units() -> None:
    families = list(text_string_to_metric_families(generate_latest(registry(buffer_with_everything())).decode()))
    assert families
    for family in families:
        assert family.name.startswith("sensorflow_")
        assert family.documentation.endswith(".")
        assert not {"ms", "milliseconds", "us", "minutes", "kilobytes", "mb"} & set(family.name.split("_"))
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


labels = st.tuples(st.sampled_from(["/a", '"\\\n']), st.sampled_from(["GET", "POST"]), st.sampled_from([200, 503]))


@given(st.lists(st.tuples(labels, st.sampled_from(LATENCY_BUCKETS_S) | st.floats(0, 10))))
def test_request_durations_read_as_those_of_prometheus_own_histogram(
    observed: list[tuple[tuple[str, str, int], float]],
) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    durations = RequestDurations()
    ours.register(durations)
    histogram = Histogram(
        "sensorflow_http_request_duration_seconds",
        "Time from a request's arrival to the end of its answer.",
        ["route", "method", "status"],
        buckets=LATENCY_BUCKETS_S,
        registry=theirs,
    )
    for labels_, duration_s in observed:
        durations.observe(*labels_, duration_s)
        histogram.labels(*labels_).observe(duration_s)
    assert generate_latest(ours) == generate_latest(theirs)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_no_fault() -> None:
    assert PROMTOOL is not None
    exposition = generate_latest(registry(buffer_with_everything()))
    check = subprocess.run([PROMTOOL, "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (check.returncode, check.stderr.decode()) == (0, "")
