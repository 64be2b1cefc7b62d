"""The metrics of several processes as those of one: counters and histograms added up, gauges each by its own rule.

Promise: a counter never goes back because a worker died: what its last scrape said goes on being counted. (A counter
that goes back looks to Prometheus like a restart of everything.)
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from app.metrics import ACROSS, BUFFER_ROWS, READINGS_GIVEN_BACK, Across, rule_of
from app.workers.channel import ChannelStats

Labels = tuple[tuple[str, str], ...]


class Family(NamedTuple):
    """One metric with all its samples, free of what it was read from."""

    name: str
    help: str
    type: str
    across: Across
    """How the values of several processes become one."""
    samples: dict[tuple[str, Labels], float]


def families_of(metrics: Iterable[Metric]) -> list[Family]:
    """Return the metrics of one process as families."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            rule_of(metric),
            {(sample.name, tuple(sample.labels.items())): sample.value for sample in metric.samples},
        )
        for metric in metrics
    ]


def encode(families: Iterable[Family]) -> str:
    """Encode families as text, for another process."""
    return orjson.dumps(
        [(*family[:-1], [(*key, value) for key, value in family.samples.items()]) for family in families]
    ).decode()


def decode(text: str) -> list[Family]:
    """Decode the text of ``encode``."""
    return [
        Family._make((*head, {(name, tuple(map(tuple, labels))): value for name, labels, value in samples}))
        for *head, samples in orjson.loads(text)
    ]


def merged(parts: Iterable[Sequence[Family]]) -> list[Family]:
    """Merge the families of a server's processes into one set."""
    whole: dict[str, Family] = {}
    for family in (family for part in parts for family in part):
        samples = whole.setdefault(family.name, family._replace(samples={})).samples
        combine = ACROSS[family.across]
        for key, value in family.samples.items():
            samples[key] = combine((samples[key], value)) if key in samples else value
    return list(whole.values())


def counters_of_dead_workers(families: Sequence[Family]) -> list[Family]:
    """Return the counters of a dead worker, without its gauges.

    The readings that it held count as given back: no sender was told that they are stored.
    """
    held = sum(sum(family.samples.values()) for family in families if family.name == BUFFER_ROWS)
    return [
        family._replace(samples={key: value + held for key, value in family.samples.items()})
        if family.name == READINGS_GIVEN_BACK
        else family
        for family in families
        if family.type != "gauge"
    ]


class MergedMetrics(Collector):
    """A collector of merged families, for prometheus_client."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.type)
            for (name, labels), value in family.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


class ChannelCollector(Collector):
    """A collector of the traffic between the processes, as counted at one end."""

    def __init__(self, stats: ChannelStats) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats
        for name, count, help_ in (
            ("readings", stats.forwarded, "Readings sent from a worker to the parent, or from it to a worker."),
            (
                "readings_conflated",
                stats.conflated,
                "Readings not forwarded because a newer one of the same sensor took their place.",
            ),
            (
                "lapses",
                stats.lapses,
                "Times that a full channel lost readings, so that subscribers were disconnected.",
            ),
        ):
            yield CounterMetricFamily(f"sensorflow_forwarded_{name}", help_, value=count)
