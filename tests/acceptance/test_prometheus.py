"""A real Prometheus watches a real server: every panel and every alert gets a correct answer."""

import math
import re
import select
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import psycopg
import pytest
from websockets.sync.client import connect

from tests.grafana.dashboards import DASHBOARDS, DATASOURCES, Node, panels
from tests.support.clients import connection_to
from tests.support.databases import new_database
from tests.support.prometheus import SCRAPE_INTERVAL_S, Prometheus, prometheus
from tests.support.proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.server import API_KEY, API_KEY_WS, Server, eventually, running

ONE = "/api/temperature_reading"
MANY = "/api/readings"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}
BATCH_ROWS = 50
REQUESTS: list[tuple[str, object, dict[str, str]]] = [
    (ONE, READING, {}),
    (ONE, {**READING, "temperature": "warm"}, {}),
    (ONE, READING, {"X-API-Key": "wrong"}),
    (MANY, BATCH_ROWS * [READING], {}),
]
"""Path, body and headers of what is sent in each round."""
ROUNDS = 10
"""So many before the database goes, and after it has come back."""
ROUND_S = 0.1
BODIES = 4
BODY_BYTES = 300_000
SETTINGS = {"BUFFER_MAX_BYTES": "4194304", "COMMIT_TIMEOUT_S": "1"}
"""Half of those bodies have room, in one process or over two."""

SELECTOR = re.compile(r"(?:\w+:)?(?:sensorflow|process)_\w+(?::\w+)?(?:\{[^}]*\})?")
"""A metric in an expression, with the labels that are asked for."""
REFUSED = 'ALERTS{alertname="SensorFlowReadingsRefused"}'
NOT_YET = {"instance:sensorflow_readings_committed:median1h": "a whole hour is looked at"}
OF_SEVERAL_WORKERS = {"sensorflow_worker_restarts_total": "one process has no parent that would count"}


@dataclass
class Watched:
    """A run of a server, the Prometheus that watched it, and its senders' answers."""

    server: Server
    prometheus: Prometheus
    database_url: str
    workers: int
    started_at: float
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How many there were, by route and status."""
    stored_rows: int = 0
    """As the answers had it."""

    @property
    def empty(self) -> Mapping[str, str]:
        """Return the metrics without any sample yet, with the reasons."""
        return NOT_YET if self.workers > 1 else NOT_YET | OF_SEVERAL_WORKERS


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def watched(
    request: pytest.FixtureRequest, embedded_admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Run a server that has got good and bad readings, too many, and has lost its database for a moment."""
    folder = tmp_path_factory.mktemp("watched")
    with (
        new_database(embedded_admin_url) as url,
        faulty_proxy(url) as proxy,
        running(folder, DATABASE_URL=proxy.url, WORKERS=str(request.param), **SETTINGS) as server,
        prometheus(tmp_path_factory.mktemp("prometheus"), target=server.url.removeprefix("http://")) as watcher,
        connect(f"{server.websocket_url}?api-key={API_KEY_WS}", max_queue=None),
    ):
        run = Watched(server, watcher, url, request.param, time.time())
        _send_all(run, proxy)
        ended_at = time.time()
        eventually(lambda: watcher.value("timestamp(up)") > ended_at)
        # The server looks at the database every 15 seconds.
        eventually(lambda: bool(watcher.ask("rate(sensorflow_maintenance_busy_seconds[1m])")), timeout_s=60)
        yield run


def _send_all(run: Watched, proxy: FaultyProxy) -> None:
    headers = {"X-API-Key": API_KEY}
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=run.server.url, headers=headers, timeout=15))
            for _ in range(run.workers)
        ]
        turns = cycle(clients)

        def rounds() -> None:
            for round_ in range(ROUNDS):
                _send(run, next(turns))
                if round_ % 5 == 0:
                    _send_too_much(run)

        def is_missed() -> bool:
            _send(run, next(turns))
            return bool(run.prometheus.ask(f"sensorflow_ready == 0 and on () {REFUSED}"))

        rounds()
        proxy.refuse()
        eventually(is_missed)
        proxy.fault = Fault.NONE
        eventually(lambda: all(client.get("/ready").is_success for client in clients))
        rounds()


def _send(run: Watched, client: httpx.Client) -> None:
    for path, content, headers in REQUESTS:
        answer = client.post(path, json=content, headers=headers)
        run.answers[path, answer.status_code] += 1
        if answer.status_code == 201:
            run.stored_rows += answer.json().get("stored", 1)
    time.sleep(ROUND_S)


def _send_too_much(run: Watched) -> None:
    """Send requests whose bodies lack their last byte. Half of them are refused, because there is no room."""
    head = f"POST {MANY} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nContent-Length: {BODY_BYTES}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with ExitStack() as stack:
        waiting = [stack.enter_context(connection_to(run.server)) for _ in range(BODIES)]
        for connection in waiting:
            connection.sendall(head.encode() + b" " * (BODY_BYTES - 1))
        while len(waiting) > BODIES // 2:
            answered, _, _ = select.select(waiting, [], [], 5)
            assert answered
            for connection in answered:
                waiting.remove(connection)
                run.answers[MANY, int(connection.recv(1_024).split()[1])] += 1


def test_prometheus_counts_what_the_senders_were_told_and_the_database_has(watched: Watched) -> None:
    value = watched.prometheus.value
    with psycopg.connect(watched.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM readings").fetchone()
    assert row
    assert watched.stored_rows == row[0] == value("sensorflow_readings_committed_total")
    assert {status for _, status in watched.answers} == {201, 401, 422, 429, 503}
    for (route, status), count in watched.answers.items():
        counted = f'sensorflow_http_request_duration_seconds_count{{method="POST", route="{route}", status="{status}"}}'
        assert value(counted) == count, counted
    assert value("sensorflow_websocket_messages_total") == watched.stored_rows
    assert value("sensorflow_websocket_connections") == 1


def test_prometheus_has_seen_the_database_go_and_come_back(watched: Watched) -> None:
    value = watched.prometheus.value
    assert (value("min_over_time(sensorflow_ready[1m])"), value("sensorflow_ready")) == (0, 1)
    assert value("sensorflow_flush_failures_total") > 0
    assert value("sensorflow_readings_given_back_total") > 0
    assert value("rate(sensorflow_readings_committed_total[1m])") > 0


def test_the_processes_of_a_server_are_counted_as_one(watched: Watched) -> None:
    """Each takes tens of megabytes, the parent of several too."""
    processes = 1 if watched.workers == 1 else 1 + watched.workers
    assert watched.prometheus.value("process_resident_memory_bytes") > processes * 30e6
    assert watched.prometheus.value("process_cpu_seconds_total") > 0


def test_every_panel_that_asks_prometheus_shows_something(watched: Watched) -> None:
    """Every panel of Prometheus shows something, and every label in its legend exists.

    Prometheus has not run for a day, so a few seconds stand for it.
    """
    end = time.time()
    targets = list(prometheus_targets())
    assert targets
    for place, target in targets:
        expression = expanded(target["expr"].replace("offset 1d", f"offset {SCRAPE_INTERVAL_S}s"))
        if target.get("instant"):
            found = watched.prometheus.ask(expression)
            values = [float(series["value"][1]) for series in found]
        else:
            found = watched.prometheus.ask_range(expression, start=watched.started_at, end=end)
            values = [float(value) for series in found for _, value in series["values"]]
        assert not all(map(math.isnan, values)), f"{place}: {target['expr']}"
        for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat", "")):
            assert all(label in series["metric"] for series in found), f"{place}: {label}"


def test_every_metric_is_shown(watched: Watched) -> None:
    """Every metric of the server is on a dashboard or in an alert."""
    asked = [target["expr"] for _, target in prometheus_targets()]
    asked += [rule["query"] for group in watched.prometheus.get("/rules")["groups"] for rule in group["rules"]]
    shown = set(re.findall(r"\bsensorflow_\w+", " ".join(asked)))
    for name in watched.prometheus.get("/label/__name__/values"):
        if name.startswith("sensorflow_"):
            histogram = re.sub("_(?:bucket|count|sum)$", "", name)
            assert {name, f"{histogram}_bucket", f"{histogram}_count"} & shown, name


def test_health_of_a_dead_server(embedded_admin_url: str, tmp_path: Path) -> None:
    """As soon as a scrape fails, no stat has a figure, and the server's stat says that it is down.

    Before, a server without requests has no share of failed requests, and one that answers well has a share of 0.
    """
    stats = {
        target["expr"]: panel
        for panel in panels(DASHBOARDS["ingest-and-server.json"])
        for target in panel["targets"]
        if panel["type"] == "stat"
    }
    (folder := tmp_path / "server").mkdir()
    with (
        new_database(embedded_admin_url) as url,
        running(folder, DATABASE_URL=url) as server,
        prometheus(tmp_path / "prometheus", target=server.url.removeprefix("http://")) as watcher,
    ):
        ready, failed = (
            expanded(expression)
            for title in ("Server", "Requests that failed")
            for expression, panel in stats.items()
            if panel["title"] == title
        )
        eventually(lambda: [watcher.value(each) for each in (ready, failed)] == [1, -1])

        def is_counted() -> bool:
            httpx.post(f"{server.url}{ONE}", json=READING, headers={"X-API-Key": API_KEY})
            return watcher.value(failed) == 0

        eventually(is_counted)
        assert all(watcher.ask(expanded(expression)) for expression in stats)
        server.stop(signal.SIGKILL)
        eventually(lambda: bool(watcher.ask("up == 0")))
        answers = {expression: watcher.ask(expanded(expression)) for expression in stats}
    said = {stats[expression]["title"]: found for expression, found in answers.items() if found}
    assert said.keys() == {"Server"}
    ((series,),) = said.values()
    (mapping,) = next(iter(stats.values()))["fieldConfig"]["defaults"]["mappings"]
    assert mapping["options"][series["value"][1]] == {"text": "down", "color": "red", "index": 2}


def test_every_rule_is_evaluated_and_asks_for_what_is_there(watched: Watched) -> None:
    """An alert that does not fire is empty, so its metrics are asked for one by one."""
    rules = [rule for group in watched.prometheus.get("/rules")["groups"] for rule in group["rules"]]
    assert rules
    for rule in rules:
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
        watched.prometheus.ask(rule["query"])
        for selector in SELECTOR.findall(rule["query"]):
            assert bool(watched.prometheus.ask(selector)) == (selector not in watched.empty), selector


def test_alerts_wait_before_they_fire_and_say_what_is_wrong(watched: Watched) -> None:
    alerts = watched.prometheus.get("/alerts")["alerts"]
    assert {alert["labels"]["alertname"] for alert in alerts} >= {
        "SensorFlowReadingsRefused",
        "SensorFlowRequestsInvalid",
    }
    for alert in alerts:
        assert alert["state"] == "pending"
        for text in alert["annotations"].values():
            assert not re.search(r"\{\{|<error|<no value>", text), text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_fault_in_a_scrape(watched: Watched) -> None:
    exposition = httpx.get(f"{watched.server.url}/metrics").content
    check = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (check.returncode, check.stderr.decode()) == (0, "")


def prometheus_targets() -> Iterator[tuple[str, Node]]:
    """Yield the Prometheus queries of all dashboards, with their places."""
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                uid = (target.get("datasource") or panel["datasource"])["uid"]
                if DATASOURCES.get(uid, {}).get("type") == "prometheus":
                    yield f"{name}, {panel['title']}", target


def expanded(expression: str) -> str:
    """Return an expression as Grafana sends it, over a time no longer than its panels have points."""
    interval_s = SCRAPE_INTERVAL_S
    rate_interval_s = max(interval_s + SCRAPE_INTERVAL_S, 4 * SCRAPE_INTERVAL_S)
    for name, value in {"rate_interval": f"{rate_interval_s}s", "interval": f"{interval_s}s", "range": "60s"}.items():
        expression = re.sub(rf"\$__{name}\b|\${{__{name}}}", value, expression)
    assert "$" not in expression, f"a variable that is not known here: {expression}"
    return expression
