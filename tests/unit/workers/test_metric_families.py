"""Metrics of several processes: sums, other rules, and counters that outlive a worker."""

from prometheus_client import CollectorRegistry, generate_latest

from app.metrics import BUFFER_ROWS, READINGS_GIVEN_BACK, Instruments
from app.workers import metric_families
from app.workers.channel import ChannelStats
from app.workers.metric_families import Family
from tests.support.metrics import buffer_with_everything, registry, scrape


def of(registry: CollectorRegistry) -> list[Family]:
    """Return a worker's families as they arrive at the parent."""
    return metric_families.decode(metric_families.encode(metric_families.families_of(registry.collect())))


def values(whole: list[Family]) -> dict[str, float]:
    """Return every sample without labels, by name."""
    exposed = CollectorRegistry()
    exposed.register(metric_families.MergedMetrics(whole))
    return scrape(exposed)


def test_one_worker_alone_says_what_it_would_without_a_parent() -> None:
    one = registry(buffer_with_everything())
    assert generate_latest(metric_families.MergedMetrics(metric_families.merged([of(one)]))) == generate_latest(one)


def test_counters_and_histograms_are_added_up_and_gauges_each_by_its_rule() -> None:
    other = registry(buffer_with_everything(), statistics=lambda: None)
    said = values(metric_families.merged([of(registry(buffer_with_everything())), of(other)]))
    expected = {
        "sensorflow_readings_accepted_total": 34,
        "sensorflow_readings_given_back_total": 6,
        "sensorflow_buffer_rows": 10,
        "sensorflow_buffer_max_rows": 40,
        "sensorflow_buffer_oldest_age_seconds": 4,
        "sensorflow_websocket_connections": 2,
        "sensorflow_flush_rows_sum": 8,
        "sensorflow_ready": 1,
        "sensorflow_database_up": 0,
        "sensorflow_database_size_bytes": 7,
    }
    assert {name: said[name] for name in expected} == expected


def test_a_label_that_only_one_worker_has_is_there_with_its_value() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    for status, each in zip((201, 503), registries, strict=True):
        durations = Instruments(each).request_durations
        for code in {201, status}:
            durations.observe("/", "POST", code, 0.003)
    text = generate_latest(metric_families.MergedMetrics(metric_families.merged(map(of, registries)))).decode()
    assert '_duration_seconds_count{method="POST",route="/",status="201"} 2.0' in text
    assert '_duration_seconds_bucket{le="0.002",method="POST",route="/",status="201"} 0.0' in text
    assert '_duration_seconds_bucket{le="+Inf",method="POST",route="/",status="503"} 1.0' in text
    assert text.count("# TYPE sensorflow_http_request_duration_seconds histogram") == 1


def test_what_a_dead_worker_counted_stays_counted_and_what_it_held_is_given_back() -> None:
    last_said = of(registry(buffer_with_everything()))
    before = values(last_said)
    remains = metric_families.counters_of_dead_workers(last_said)
    assert not [family for family in remains if family.type == "gauge"]
    assert metric_families.counters_of_dead_workers(remains) == remains
    after = values(metric_families.merged([remains, of(registry(buffer_with_everything()))]))
    assert all(after[name] >= value for name, value in before.items() if name.endswith("_total"))
    ends = sum(after[f"sensorflow_readings_{end}_total"] for end in ("committed", "rejected", "given_back"))
    assert after["sensorflow_readings_accepted_total"] == ends + after[BUFFER_ROWS]
    assert after[f"{READINGS_GIVEN_BACK}_total"] == 3 + 5 + 3


def test_what_goes_between_processes_is_counted_at_both_ends() -> None:
    parts = [
        metric_families.families_of(
            metric_families.ChannelCollector(ChannelStats(forwarded=3, conflated=1, lapses=0)).collect()
        ),
        metric_families.families_of(
            metric_families.ChannelCollector(ChannelStats(forwarded=2, conflated=0, lapses=1)).collect()
        ),
    ]
    said = values(metric_families.merged(parts))
    assert said["sensorflow_forwarded_readings_total"] == 5
    assert said["sensorflow_forwarded_readings_conflated_total"] == said["sensorflow_forwarded_lapses_total"] == 1
