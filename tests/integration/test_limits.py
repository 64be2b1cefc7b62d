"""Readings beyond their limits in a real database: each committed one counts once, for a certain time."""

from typing import Any

import psycopg
import pytest

from app.errors import DatabaseUnavailable
from app.ingest.batch import Reading
from app.ingest.idempotency import DuplicateRequest
from app.registry import SensorChange
from app.store import limits
from app.store.sensors import Sensors
from tests.support.aggregating import execute, reading, rig, rows
from tests.support.databases import holding
from tests.support.samples import batch_of, record

MINUTE, HOUR = 60, 3_600
ANSWER = b"the first answer"
LIMIT = """
INSERT INTO sensors (name) VALUES ('a');
INSERT INTO sensor_limits SELECT id, 'temperature', 0, 21 FROM sensors
"""
LOG = "SELECT is_above, readings::int, value, bound FROM limit_violation_log ORDER BY id"
NOW_BEYOND = """
SELECT s.name, v.metric, v.value, v.lower, v.upper FROM limit_violations v JOIN sensors s ON s.id = v.sensor_id
"""


def an_hours_readings(now_s: float) -> list[Reading]:
    """Return 60 readings, a minute apart, 19 of them at 95 °C and more, the last at 20."""
    return [reading(now_s - HOUR + place * MINUTE, 95 + place if place in range(30, 49) else 20) for place in range(60)]


async def test_batch_whose_last_reading_is_fine(database: str) -> None:
    """An hourly batch shows what was beyond in it."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        await parts.write(*an_hours_readings(parts.clock_s[0]))
        await parts.latest.write()
    assert rows(database, LOG) == [(True, 19, 143, 21)]
    assert rows(database, NOW_BEYOND) == [("a", "temperature", 143, 0, 21)]


async def test_spike_between_two_looks(database: str) -> None:
    """A single reading that is followed by a good one still counts."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        for age_s, value in ((3, 20), (2, -5), (1, 20)):
            await parts.write(reading(parts.clock_s[0] - age_s, value))
        await parts.latest.write()
    assert rows(database, LOG) == [(False, 1, -5, 0)]
    assert rows(database, NOW_BEYOND) == [("a", "temperature", -5, 0, 21)]


async def test_refused_readings_do_not_count(database: str) -> None:
    """Readings that PostgreSQL refuses are not logged, alone or in a batch."""
    execute(database, LIMIT, "ALTER TABLE readings ADD CONSTRAINT cool CHECK (temperature < 50)")
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        values = enumerate((20, 30, 60, 40, 70))
        batch = batch_of([reading(now_s - place, value) for place, value in values])
        flush = await parts.writer.prepare([batch, reading(now_s - 9, 80), reading(now_s - 8, 35)])
        await parts.writer.write(flush, dict)
    assert rows(database, LOG) == [(True, 1, 35, 21), (True, 2, 40, 21)]


async def test_log_that_is_locked(database: str) -> None:
    """A lock on the log holds no reading up, and what it keeps out is logged once it is gone, once."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        with holding(database, "LOCK TABLE limit_violation_log IN SHARE MODE"):
            await parts.write(reading(now_s - 2, 30))
            await parts.write(*(reading(now_s - 1 + place / 10, 40 + place) for place in range(3)))
            with pytest.raises(DatabaseUnavailable):
                await parts.writer.limits.log_held()
        await parts.write(reading(now_s, 50))
        await parts.writer.limits.leave()
        await parts.writer.limits.log_held()
    assert rows(database, "SELECT count(*)::int FROM readings") == [(5,)]
    assert sorted(rows(database, LOG)) == [(True, 1, 30, 21), (True, 1, 50, 21), (True, 3, 42, 21)]


async def test_flush_that_is_rolled_back_does_not_count(database: str) -> None:
    """A repeated request adds nothing to the log, as it adds no reading."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        hot = reading(parts.clock_s[0], 30)
        await parts.writer.write(await parts.writer.prepare([hot]), lambda: {record(): ANSWER})
        flush = await parts.writer.prepare([hot])
        with pytest.raises(DuplicateRequest):
            await parts.writer.write(flush, lambda: {record(): ANSWER})
    assert rows(database, LOG) == [(True, 1, 30, 21)]


async def test_changed_limit_holds_from_then_on(database: str) -> None:
    """A changed limit holds at once after a PATCH in this process, otherwise from the next look on."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        sensors = Sensors(parts.database, on_new_limits=parts.writer.limits.check)
        now_s = parts.clock_s[0]
        await parts.write(reading(now_s - 9, 20))
        await sensors.change("a", SensorChange(limits={"temperature": {"upper": 19}}))
        await parts.write(reading(now_s - 8, 20))
        execute(database, "UPDATE sensor_limits SET upper = 18")
        await parts.writer.limits.check()
        await parts.write(reading(now_s - 7, 20))
        execute(database, "TRUNCATE sensor_limits")
        await parts.writer.limits.check()
        await parts.write(reading(now_s - 6, 20))
    assert rows(database, LOG) == [(True, 1, 20, 19), (True, 1, 20, 18)]


async def test_limits_are_loaded_only_when_changed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a version that is known reads nothing else."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        first = await parts.writer.limits.current()
        monkeypatch.setattr(limits, "LOAD", "SELECT 1 / 0")
        await parts.writer.limits.check()
        assert await parts.writer.limits.current() is first


@pytest.mark.parametrize(
    ("correction", "is_over"),
    [
        ("UPDATE limit_violation_log SET arrived_at = now() - interval '61 minutes'", True),
        ("UPDATE limit_violation_log SET arrived_at = now() - interval '59 minutes'", False),
        ("UPDATE sensor_limits SET upper = 200", True),
        ("UPDATE sensor_limits SET upper = 100", False),
        ("DELETE FROM sensor_limits", True),
    ],
)
async def test_violation_ends(database: str, correction: str, is_over: bool) -> None:
    """An hour after it came, and as soon as the limit is corrected."""
    execute(database, LIMIT)
    async with rig(database) as parts:
        await parts.write(*an_hours_readings(parts.clock_s[0]))
        await parts.latest.write()
    execute(database, correction)
    assert rows(database, NOW_BEYOND) == [] if is_over else rows(database, NOW_BEYOND) != []


@pytest.mark.parametrize(
    ("expected_s", "is_over"), [(None, True), (HOUR, True), (3 * HOUR, False), (315_576_000, False)]
)
async def test_latest_reading_beyond(database: str, expected_s: float | None, is_over: bool) -> None:
    """A latest reading beyond a limit counts for an hour or three expected intervals. Then the sensor is offline, which
    is another alert.
    """
    execute(database, LIMIT)
    async with rig(database) as parts:
        await parts.write(reading(parts.clock_s[0] - 5 * HOUR, 30))
        await parts.latest.write()
    execute(database, "UPDATE limit_violation_log SET arrived_at = now() - interval '5 hours'")
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE sensors SET expected_interval_s = %s", [expected_s])
    assert rows(database, NOW_BEYOND) == ([] if is_over else [("a", "temperature", 30, 0, 21)])


async def test_log_is_bounded(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest rows go, some at a time, when they are too old or too many."""
    execute(
        database,
        """
        INSERT INTO limit_violation_log (arrived_at, sensor_id, metric, is_above, readings, first_time, last_time, time,
                                         value, bound)
        SELECT now() - interval '1 day' * (100 - number), 1, 'temperature', true, number, now(), now(), now(), 2, 1
        FROM generate_series(1, 100) AS number
        """,
    )
    async with rig(database) as parts:
        async with parts.database.connection(timeout_s=10) as connection:
            assert not await limits.prune(connection)
        assert rows(database, "SELECT min(readings)::int FROM limit_violation_log") == [(11,)]
        monkeypatch.setattr(limits, "PRUNE", limits.PRUNE.replace(str(limits.MAX_ROWS), "40").replace("20000", "30"))
        monkeypatch.setattr(limits, "PRUNED_ROWS", 30)
        async with parts.database.connection(timeout_s=10) as connection:
            assert await limits.prune(connection)
            assert not await limits.prune(connection)
    assert rows(database, "SELECT min(readings)::int, count(*)::int FROM limit_violation_log") == [(61, 40)]


async def test_reader_may_see_the_log(database: str) -> None:
    """Grafana's role reads it."""
    execute(database, "SET ROLE sensorflow_reader; SELECT * FROM limit_violation_log")


MANY_SENSORS = """
INSERT INTO sensors (name) SELECT 's' || number FROM generate_series(1, 4000) AS number;
INSERT INTO latest_readings (sensor_id, time, id, temperature, humidity)
SELECT id, now(), id, id % 100, 50 FROM sensors;
INSERT INTO sensor_limits SELECT id, 'temperature', 1, 98 FROM sensors WHERE {limited};
ANALYZE sensors; ANALYZE latest_readings; ANALYZE sensor_limits
"""
OTHER_LIMITS = (
    "INSERT INTO sensor_limits SELECT s.id, m.name, 0, 100 FROM sensors s CROSS JOIN metrics m ON CONFLICT DO NOTHING"
)
BEYOND = "SELECT sensor_id, metric, value FROM limit_violations ORDER BY 1, 2"


def rows_read(node: dict[str, Any], table: str) -> float:
    """Return the number of rows of a table that a plan reads, including those that its conditions leave out."""
    read = sum(rows_read(child, table) for child in node.get("Plans", []))
    if node.get("Relation Name") == table:
        read += float(node["Actual Loops"]) * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return read


def test_violations_of_few_limits(database: str) -> None:
    """Only the latest readings that have a limit are read, whatever the number of sensors."""
    execute(database, MANY_SENSORS.format(limited="id % 500 = 0"))
    ((plan,),) = rows(database, "EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM limit_violations")
    assert rows_read(plan[0]["Plan"], "latest_readings") <= 8
    assert [value for _, _, value in rows(database, BEYOND)] == [0] * 8


def test_violations_of_many_limits(database: str) -> None:
    """With so many limits that all latest readings are read, the same violations are found."""
    execute(database, MANY_SENSORS.format(limited="true"))
    few = rows(database, BEYOND)
    execute(database, OTHER_LIMITS)
    ((limits_now,),) = rows(database, "SELECT count(*)::int FROM sensor_limits")
    assert limits_now > 10_000
    assert rows(database, BEYOND) == few
    assert len(few) == 80
