"""Chunks of readings on real databases: narrow ones made ahead, and old ones merged."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from app.store import chunks as chunks_module
from app.store import columnstore
from app.store.chunks import DAY, Chunks
from app.store.columnstore import Columnstore
from app.store.database import Database
from app.store.pruning import Pruning
from app.store.retention import Retention
from app.store.works import maintenance_works
from tests.support.writing import execute, opened, rows

HOUR = timedelta(hours=1)
ENDLESS = Chunks(kept_days=0, accept_future_minutes=10)
RECENT = Chunks(kept_days=10, accept_future_minutes=10)
"""Merges nothing."""
FLUSHES = "INSERT INTO flushes (flush_id, rows) SELECT i, 100000 FROM generate_series(1, {}) i"
INSERT = "INSERT INTO readings SELECT {time}, 1 + i % 5, i, 1, i, NULL, NULL FROM generate_series(1, 100) i"
SPANS = """
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' ORDER BY 1
"""
CONTENT = "SELECT count(*), count(DISTINCT (time, id)), sum(temperature), sum(id), min(time), max(time) FROM readings"


async def make_ahead(database: Database) -> int:
    """Make chunks ahead, and return how many."""
    async with await database.connect("test") as connection:
        return len([None async for _ in ENDLESS.make_ahead(connection)])


async def convert(database: Database, keeper: Columnstore) -> int:
    """Convert chunks, and return how many pieces there were."""
    async with await database.connect("test") as connection, await database.connect("test") as guard:
        return len([None async for _ in keeper.convert(connection, guard)])


async def merge(database: Database, work: Chunks = ENDLESS) -> int:
    """Convert chunks and merge them, and return how many merges were tried."""
    async with await database.connect("test") as connection:
        await convert(database, Columnstore(quiet=timedelta(0)))
        return len([None async for _ in work.merge(connection)])


def spans(url: str) -> list[tuple[datetime, datetime]]:
    with psycopg.connect(url) as connection:
        return connection.execute(SPANS).fetchall()


@pytest.mark.parametrize("per_s", [0, 100])
async def test_a_slow_fleet_gets_chunks_of_a_day(community_database: str, per_s: int) -> None:
    """Nothing is made ahead of readings that come slowly."""
    async with opened(community_database) as database:
        execute(community_database, FLUSHES.format(per_s * 300 // 100_000))
        assert await make_ahead(database) == 0
    assert spans(community_database) == []


async def test_a_fast_fleet_gets_chunks_of_an_hour(community_database: str) -> None:
    """Chunks of this hour and the next are made once, and late readings make chunks of a day."""
    async with opened(community_database) as database:
        execute(community_database, FLUSHES.format(10_000 * 300 // 100_000))
        assert await make_ahead(database) == 2
        ((now,),) = rows(community_database, "SELECT now()")
        assert isinstance(now, datetime)
        found = spans(community_database)
        assert [end - start for start, end in found] == [HOUR, HOUR]
        assert found[0][0] <= now < found[0][1] == found[1][0]
        assert await make_ahead(database) == 0
        execute(community_database, INSERT.format(time="now() - interval '9 days' - i * interval '15 minutes'"))
        execute(community_database, INSERT.format(time="now()"))
        late, days = spans(community_database)[:-2], {DAY}
        assert {end - start for start, end in late} == days
    assert rows(community_database, "SELECT count(*) FROM readings") == [(200,)]


async def test_a_chunk_made_ahead_keeps_no_writer_out(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows go to the columnstore beside a writer, even the first of them."""
    monkeypatch.setattr(columnstore, "FIRST_ROWS", 50)
    async with opened(community_database) as database:
        execute(community_database, FLUSHES.format(10_000 * 300 // 100_000))
        await make_ahead(database)
        execute(community_database, INSERT.format(time="now()"))
        with psycopg.connect(community_database) as writer:
            writer.execute(INSERT.format(time="now()"))
            await asyncio.sleep(1.1)  # until PostgreSQL has reported how many rows were written
            assert await convert(database, Columnstore())
        left = "SELECT count(*) FROM ONLY {}".format(
            *rows(community_database, "SELECT min(c::text) FROM show_chunks('readings') c")[0]
        )
        assert rows(community_database, left) == [(100,)]
    assert rows(community_database, "SELECT count(*) FROM readings") == [(200,)]


async def test_a_chunk_made_ahead_is_as_any_other(community_database: str) -> None:
    """It has the same columns, indexes and triggers as one that a flush has made."""
    shape = """
        SELECT (SELECT array_agg(attname || ' ' || atttypid ORDER BY attnum) FROM pg_attribute
                WHERE attrelid = c AND attnum > 0),
               (SELECT array_agg(substring(indexdef FROM 'USING.*') ORDER BY 1) FROM pg_indexes
                WHERE format('%I.%I', schemaname, tablename)::regclass = c),
               (SELECT array_agg(tgname ORDER BY 1) FROM pg_trigger WHERE tgrelid = c),
               (SELECT count(*) FROM pg_inherits WHERE inhrelid = c AND inhparent = 'readings'::regclass)
        FROM show_chunks('readings') c ORDER BY c
    """
    async with opened(community_database) as database:
        execute(community_database, INSERT.format(time="now() - interval '3 days'"))
        execute(community_database, FLUSHES.format(10_000 * 300 // 100_000))
        await make_ahead(database)
    by_flush, *made_ahead = rows(community_database, shape)
    assert made_ahead == [by_flush] * 2


async def test_nobody_waits_for_a_chunk_made_ahead(community_database: str) -> None:
    """While a session keeps chunks from being made, the work gives up soon, and writers go on."""
    async with opened(community_database) as database:
        execute(community_database, INSERT.format(time="now() - interval '3 days'"))
        execute(community_database, FLUSHES.format(10_000 * 300 // 100_000))
        with psycopg.connect(community_database) as vacuum:
            vacuum.execute("LOCK TABLE readings IN SHARE UPDATE EXCLUSIVE MODE")
            making = asyncio.create_task(make_ahead(database))
            await asyncio.to_thread(
                execute,
                community_database,
                "SET lock_timeout = '2s';" + INSERT.format(time="now() - interval '3 days'"),
            )
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await making
        assert await make_ahead(database) == 2


async def test_each_edition_does_what_its_licence_allows(database: str) -> None:
    """No work on chunks fails because an edition lacks it, however fast readings come."""
    async with opened(database) as opened_database, await opened_database.connect("test") as connection:
        execute(database, FLUSHES.format(10_000 * 300 // 100_000))
        assert opened_database.edition is not None
        works = maintenance_works(
            opened_database,
            opened_database.edition,
            retention=Retention(0, 0, 0, 0),
            pruning=Pruning(opened_database, idempotency_window_hours=1, accept_future_minutes=10),
            chunks=ENDLESS,
        )
        for work in works:
            if work.name in {"chunks", "merging"}:
                async for _ in work.pieces(connection, connection):
                    pass


async def test_old_chunks_are_merged(community_database: str) -> None:
    """Old days become one chunk with the gaps between them, with all readings. Late ones are taken and converted."""
    for day in (0, 1, 4, 25, 33):
        execute(
            community_database,
            INSERT.format(time=f"'epoch'::timestamptz + interval '{600 + day} days' + i * interval '10 minutes'"),
        )
    before = rows(community_database, CONTENT)
    async with opened(community_database) as database:
        assert await merge(database) == 1
        assert rows(community_database, CONTENT) == before
        widths = [(end - start).days for start, end in spans(community_database)]
        assert widths == [26, 1]
        assert await merge(database) == 0
        execute(community_database, INSERT.format(time="'epoch'::timestamptz + interval '610 days'"))
        assert await merge(database) == 0
        assert [(end - start).days for start, end in spans(community_database)] == [26, 1]
    status = "SELECT _timescaledb_functions.chunk_status(c) FROM show_chunks('readings') c"
    assert rows(community_database, status) == [(columnstore.COMPRESSED,)] * 2
    assert rows(community_database, "SELECT count(*), sum(temperature) FROM readings") == [(600, 6 * 5_050)]


async def test_recent_chunks_are_left(community_database: str) -> None:
    """Days for which readings may still come often are not merged, the others by a tenth of the retention."""
    execute(community_database, INSERT.format(time="now() - interval '1 day' - i * interval '4 hours'"))
    async with opened(community_database) as database:
        await merge(database, Chunks(kept_days=20, accept_future_minutes=10))
        ((week_ago,),) = rows(community_database, "SELECT now() - interval '7 days'")
    found = spans(community_database)
    assert {end - start for start, end in found if end > week_ago} == {DAY}  # type: ignore[operator]
    assert {end - start for start, end in found} == {DAY, 2 * DAY}


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE readings DROP COLUMN note",
        "ALTER TABLE readings SET (timescaledb.orderby = 'time')",
    ],
)
async def test_merged_chunks_keep_each_column(community_database: str, change: str) -> None:
    """Chunks from before and after a change of columns or settings keep their values, and hold up no others."""
    time = "'epoch'::timestamptz + interval '{} days' + i * interval '10 minutes'"
    execute(community_database, "ALTER TABLE readings ADD COLUMN note text")
    execute(community_database, "ALTER TABLE readings ADD COLUMN other text")
    async with opened(community_database) as database:
        for days in ((601, 602), (603, 604, 633, 634)):
            for day in days:
                execute(community_database, INSERT.format(time=time.format(day)).replace("NULL,", "i,"))
            execute(community_database, "UPDATE readings SET other = 'x'")
            await merge(database, RECENT)
            if days[0] == 601:
                execute(community_database, change)
        content = "SELECT count(*), sum(temperature), sum(humidity), sum(length(other)) FROM readings"
        assert await merge(database) == 3
    assert rows(community_database, content) == [(600, 6 * 5_050, 6 * 5_050, 600)]
    assert [(end - start).days for start, end in spans(community_database)] == [2, 2, 2]


async def test_a_merge_hides_no_readings(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query for readings whose chunk is being merged gets them, and so do their aggregates."""
    time = "'epoch'::timestamptz + interval '{} days' + i * interval '10 minutes'"
    for day in (601, 602):
        execute(community_database, INSERT.format(time=time.format(day)))
    of_day = "time >= 'epoch'::timestamptz + interval '602 days'"
    refresh = "CALL refresh_continuous_aggregate('readings_1m', '1971-08-20', '1971-09-01')"
    execute(community_database, refresh)
    execute(community_database, INSERT.format(time=time.format(602) + " + interval '1 second'"))
    async with opened(community_database) as database, await database.connect("test") as connection:
        await convert(database, Columnstore(quiet=timedelta(0)))
        waiting: list[asyncio.Task[object]] = []
        execute_there = connection.execute

        async def execute_slowly(query: str, *arguments: Any, **options: Any) -> Any:
            result = await execute_there(query, *arguments, **options)
            if query == chunks_module.MERGE:
                query_of_day = f"SELECT count(*) FROM readings WHERE {of_day}"
                waiting.append(asyncio.create_task(asyncio.to_thread(rows, community_database, query_of_day)))
                waiting.append(asyncio.create_task(asyncio.to_thread(execute, community_database, refresh)))
                await asyncio.sleep(0.5)
            return result

        monkeypatch.setattr(connection, "execute", execute_slowly)
        assert len([None async for _ in ENDLESS.merge(connection)]) == 1
        assert (await asyncio.gather(*waiting))[0] == [(200,)]
    assert len(spans(community_database)) == 1
    assert rows(community_database, "SELECT sum(count)::int FROM readings_1m") == [(300,)]


async def test_nobody_waits_for_a_merge(community_database: str) -> None:
    """While a session reads for long, nothing is merged, and writers wait once for a moment."""
    for day in (601, 602, 631, 632):
        execute(community_database, INSERT.format(time=f"'epoch'::timestamptz + interval '{day} days'"))
    async with opened(community_database) as database:
        with psycopg.connect(community_database) as reader:
            reader.execute("SELECT count(*) FROM readings WHERE time > now() - interval '1 day'")
            assert await merge(database) == 0
        assert len(spans(community_database)) == 4
        assert await merge(database) == 2


async def test_chunks_in_use_are_left_for_later(community_database: str) -> None:
    """While a session reads old chunks for long, others are merged, and no writer waits."""
    time = "'epoch'::timestamptz + interval '600 days' + i % 2 * interval '1 day' + {} * interval '30 days'"
    elsewhere = INSERT.format(time="'epoch'::timestamptz + interval '690 days'")
    for insert in (INSERT.format(time=time.format(0)), INSERT.format(time=time.format(1)), elsewhere):
        execute(community_database, insert)
    async with opened(community_database) as database:
        await convert(database, Columnstore(quiet=timedelta(0)))
        ((first, *_), *_) = rows(community_database, "SELECT show_chunks('readings')::text ORDER BY 1")
        with psycopg.connect(community_database) as reader:
            reader.execute(f"SELECT count(*) FROM {first}")
            merging = asyncio.create_task(merge(database))
            await asyncio.sleep(0.02)
            await asyncio.to_thread(execute, community_database, "SET lock_timeout = '2s';" + elsewhere)
            assert await merging == 2
            assert len(spans(community_database)) == 4
        await merge(database)
    assert len(spans(community_database)) == 3
    assert rows(community_database, "SELECT count(*) FROM readings") == [(400,)]


async def test_five_years_of_days_become_few_chunks(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of chunks follows the months, not the days."""
    monkeypatch.setattr(chunks_module, "CHUNKS_AT_A_TIME", 20)
    execute(
        community_database,
        "INSERT INTO readings SELECT 'epoch'::timestamptz + interval '600 days' + i * interval '12 hours', 1, i, 1, i,"
        " NULL, NULL FROM generate_series(0, 719) i",
    )
    before = rows(community_database, CONTENT)
    async with opened(community_database) as database:
        assert len(spans(community_database)) == 360
        while await merge(database):
            pass
    assert len(spans(community_database)) == 12
    assert rows(community_database, CONTENT) == before
