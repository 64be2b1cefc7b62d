"""The maintenance reads a bounded number of rows at a time, also where thin times meet dense ones."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from app.store import aggregate_tables, aggregates
from app.store.aggregates import Aggregates
from app.store.tiers import TIERS, Span, Tier
from tests.support.aggregating import Rig, assert_right, execute, rig, rows

PIECE_ROWS = 1_000
THIN = """
INSERT INTO readings (time, sensor_id, id, source_id, temperature)
SELECT time, 1, 1, 1, 20 FROM generate_series({}, {}, interval '{}') AS time
"""
DENSE = """
INSERT INTO readings (time, sensor_id, id, source_id, temperature)
SELECT time, sensor, 1, 1, extract(epoch FROM time)::bigint % 41
FROM generate_series({}, {}, interval '10 seconds') AS time, generate_series(1, 10) AS sensor
"""
OLD = "date_trunc('day', now()) - interval '100 days' + interval '7 hours'"
RECENT = "now() - interval '9 hours'"
SOURCES = [("readings", "time"), ("readings_1m", "bucket"), ("readings_1h", "bucket")]
COUNT = "SELECT count(*) FROM {} WHERE {} >= %(start)s AND {} < %(end)s"


class Watched(Aggregates):
    """Aggregates that record each piece of a refresh."""

    def __init__(self, parts: Rig) -> None:
        super().__init__(parts.database)
        self.pieces: list[tuple[Tier, Span]] = []

    async def _pieces(self, *arguments: Any, **options: Any) -> AsyncIterator[Span]:
        async for piece in super()._pieces(*arguments, **options):
            self.pieces.append((arguments[2], piece))
            yield piece

    def assert_bounded(self, url: str) -> None:
        """Assert that each piece has PIECE_ROWS at most, or is one bucket, and that thin times had long ones."""
        for tier, (start, end) in self.pieces:
            name, time = SOURCES[TIERS.index(tier)]
            ((count,),) = rows(url, COUNT.format(name, time, time), start=start, end=end)
            assert count <= PIECE_ROWS or end - start == tier.width, f"{tier.name} from {start} to {end}"
        for tier in TIERS[:2]:
            assert max(end - start for of, (start, end) in self.pieces if of is tier) >= 8 * tier.width


class WatchedConnection:
    """A connection that records the spans of what is compared with readings."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.spans: list[Span] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, query: str, arguments: Any = None, **options: Any) -> Any:
        if "FROM readings WHERE time" in query and "LIMIT" not in query:
            self.spans.append((arguments["start"], arguments["end"]))
        return await self._connection.execute(query, arguments, **options)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "PIECE_ROWS", PIECE_ROWS)


def write_history(url: str) -> None:
    """Write 200 thin days, with five dense hours in them."""
    execute(
        url,
        THIN.format("now() - interval '200 days'", "now() - interval '1 hour'", "1 day"),
        DENSE.format(OLD, f"{OLD} + interval '5 hours'"),
    )


async def test_a_refresh_forward(database: str) -> None:
    """A refresh of a history with dense hours reads a bounded number of rows at a time."""
    async with rig(database) as parts:
        write_history(database)
        execute(
            database,
            "UPDATE server_settings SET value = (now() - interval '201 days')::text"
            " WHERE name = 'aggregates_refreshed_until'",
        )
        watched = Watched(parts)
        await parts.do(watched.refresh)
        watched.assert_bounded(database)
        await parts.refresh()
        assert_right(database)


async def test_a_refresh_waits_for_its_minute(database: str) -> None:
    """Each minute is refreshed a minute after its end, and not up to half a minute later."""
    async with rig(database) as parts:
        await parts.refresh()
        async with await parts.database.connect("test") as connection, await parts.database.connect("test") as guard:
            pieces = Aggregates(parts.database).refresh(connection, guard)
            pause_s = await anext(pieces)
            ((left_s,),) = rows(
                database,
                "SELECT extract(epoch FROM value::timestamptz + interval '2 minutes' - now())::double precision"
                " FROM server_settings WHERE name = 'aggregates_refreshed_until'",
            )
            assert pause_s == pytest.approx(left_s, abs=2)


async def test_a_refresh_of_late_readings(database: str) -> None:
    """A refresh of a long late range with dense hours reads a bounded number of rows at a time."""
    async with rig(database) as parts:
        await parts.refresh()
        write_history(database)
        execute(
            database,
            "INSERT INTO stale_ranges (starts_at, ends_at)"
            " VALUES (now() - interval '201 days', now() - interval '50 days')",
        )
        watched = Watched(parts)
        await parts.do(watched.refresh_late)
        watched.assert_bounded(database)
        assert rows(database, f"SELECT sum(count)::int FROM readings_1d WHERE bucket <= {OLD}")[0][0] > 18_000


async def test_a_refresh_by_hand(database: str) -> None:
    """A refresh by hand of a history with dense hours reads a bounded number of rows at a time."""
    async with rig(database) as parts:
        await parts.refresh()
        write_history(database)
        watched = Watched(parts)
        now = datetime.now(UTC)
        await watched.recompute(now.replace(year=now.year - 2), now, on_piece=lambda _: None)
        watched.assert_bounded(database)
        await parts.refresh()
        assert_right(database)


async def test_a_refresh_of_what_has_changed(community_database: str) -> None:
    """A refresh of dense hours that have changed reads a bounded number of rows at a time, and nothing else."""
    async with rig(community_database) as parts:
        execute(community_database, DENSE.format("now() - interval '1 day'", "now() - interval '1 hour'"))
        await parts.refresh()
        execute(
            community_database,
            THIN.format("now() - interval '47 hours'", RECENT, "20 minutes")
            + ";"
            + DENSE.format(RECENT, f"{RECENT} + interval '5 hours'").replace("10 seconds", "9 seconds"),
        )
        watched = Watched(parts)
        await parts.do(watched.refresh_changed)
        watched.assert_bounded(community_database)
        assert_right(community_database)
        again = Watched(parts)
        await parts.do(again.refresh_changed)
        assert again.pieces == []


async def test_a_comparison_of_days(community_database: str) -> None:
    """A day is compared with its readings a bounded number of rows at a time, and other work has its turn between."""
    async with rig(community_database) as parts:
        write_history(community_database)
        await parts.refresh()
        execute(community_database, f"UPDATE readings SET temperature = temperature WHERE time > {OLD}")
        async with await parts.database.connect("test") as connection, await parts.database.connect("test") as guard:
            watched = WatchedConnection(connection)
            pieces = [piece async for piece in Aggregates(parts.database).check_days(watched, guard)]  # type: ignore[arg-type]
        for start, end in watched.spans:
            ((count,),) = rows(community_database, COUNT.format("readings", "time", "time"), start=start, end=end)
            assert count <= PIECE_ROWS or (end - start) == TIERS[1].width
        assert len(pieces) >= len(watched.spans) > 100
        assert rows(community_database, f"SELECT count(*) FROM checked_days WHERE day = date_trunc('day', {OLD})") == [
            (1,)
        ]


async def test_the_search_for_latest_readings(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest readings of many sensors are looked up few at a time, and other work has its turn between."""
    monkeypatch.setattr(aggregates, "LATEST_SENSORS", 2)
    async with rig(community_database) as parts:
        execute(
            community_database,
            "INSERT INTO sensors (name) SELECT 's' || i FROM generate_series(1, 10) i",
            DENSE.format("now() - interval '5 hours'", "now() - interval '4 hours'"),
        )
        await parts.do(Aggregates(parts.database).refresh)
        now = datetime.now(UTC)
        async with await parts.database.connect("test") as connection:
            pieces = [piece async for piece in aggregates.find_latest(connection, now - TIERS[-1].width, now)]
    assert rows(community_database, "SELECT count(*) FROM latest_readings") == [(10,)]
    assert len(pieces) >= 5


async def test_the_search_reads_no_more_than_it_counts(database: str, edition: str) -> None:
    """To count the readings of a span, or find the oldest, the others are not read."""
    if edition == "community":
        pytest.skip("aggregates are continuous")
    async with rig(database):
        write_history(database)
        execute(database, "ANALYZE")
        span = datetime(2020, 1, 1, tzinfo=UTC), TIERS[-1].ceil(datetime.now(UTC))
        statement, arguments = aggregate_tables.count_readings(span, has_chunks=edition == "apache")
        with psycopg.connect(database) as connection:
            found = connection.execute(statement, {**arguments, "limit": PIECE_ROWS}).fetchone()
            assert found == (PIECE_ROWS,)
            plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", {**arguments, "limit": 100})
            assert rows_of_readings(plan.fetchall()[0][0][0]["Plan"]) < 1_000
            if edition != "apache":  # there the chunks say
                plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {aggregate_tables.OLDEST_READING}")
                assert rows_of_readings(plan.fetchall()[0][0][0]["Plan"]) < 100


def rows_of_readings(node: dict[str, Any]) -> float:
    """Return how many readings a plan has looked at."""
    own = 0.0
    if re.match("readings$|_hyper", node.get("Relation Name", "")):
        own = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return own + sum(rows_of_readings(child) for child in node.get("Plans", []))
