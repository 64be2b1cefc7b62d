"""The writer on real servers: the outcome of each flush, also when a connection breaks."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import psycopg
import pytest

from app.errors import DatabaseUnavailable, OutcomeUnknown
from app.ingest.batch import Content, Sender
from app.ingest.idempotency import DuplicateRequest, Records, StoredResult
from app.store.history import latest_reading
from app.store.latest import LatestReadings
from app.store.names import MIN_REMEMBERED_NAMES
from app.store.writer import ID_BLOCK_ROWS, MIN_COLUMNSTORE_ROWS
from tests.support.proxy import Fault, faulty_proxy
from tests.support.samples import batch_of, record
from tests.support.writing import (
    DASHBOARD,
    DAY_S,
    FIRST_ANSWER,
    SCRIPT,
    as_stored,
    batch,
    count,
    execute,
    reading,
    refuse_heat,
    rows,
    stored,
    until_somebody_waits_for_a_lock,
    write,
    writing,
)


def in_columnstore(url: str) -> int:
    """Return how many rows TimescaleDB holds compressed."""
    tables = rows(
        url, "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename ~ '^compress_hyper'"
    )
    return sum(
        int(str(rows(url, f"SELECT coalesce(sum(_ts_meta_count), 0) FROM {table}")[0][0])) for (table,) in tables
    )


def swallow_heat(url: str) -> None:
    """Let a trigger leave hot readings out from now on, which PostgreSQL reports as success."""
    execute(
        url,
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF NEW.temperature < 25 THEN RETURN NEW; END IF; RETURN NULL; END'",
        "CREATE TRIGGER swallow BEFORE INSERT ON readings FOR EACH ROW EXECUTE FUNCTION swallow()",
    )


def kill_flusher(url: str) -> None:
    """End the flusher's backend, and wait until it is gone."""
    execute(url, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name ~ 'flusher'")


async def test_readings_and_batches_are_stored_to_the_last_bit(database: str) -> None:
    contents: list[Content] = [
        reading(1, sensor="alone"),
        batch_of([reading(place, sensor=f"sensor {place % 7} 'ü'") for place in range(5_000)], source=SCRIPT),
        reading(2, source=SCRIPT),
        batch(*range(40, 20, -1), sensors=3),
    ]
    async with writing(database, columnstore_rows_per_sensor=0) as writer:
        flush = await write(writer, *contents)
    assert (flush.rows.count, flush.refused) == (5_022, {})
    assert [row[:5] for row in stored(database)] == [row[:5] for row in as_stored(contents, flush.first_id)]
    assert {row[5:7] for row in stored(database)[1:5_001]} == {SCRIPT}
    assert rows(database, "SELECT flush_id, rows FROM flushes") == [(flush.first_id, 5_022)]


async def test_what_was_not_measured_is_null(database: str) -> None:
    values = [(1.5, None, None), (None, 0.0, None), (None, None, -0.0), (1.0, 2.0, None)]
    each = [reading(place)._replace(temperature=t, humidity=h, pressure=p) for place, (t, h, p) in enumerate(values)]
    async with writing(database) as writer:
        await write(writer, *each, batch_of(each))
    assert rows(database, "SELECT temperature, humidity, pressure FROM readings ORDER BY id") == values * 2


async def test_the_view_has_the_columns_of_the_older_server(database: str) -> None:
    async with writing(database, timezone="America/New_York") as writer:
        flush = await write(writer, reading(0))
    (row,) = rows(database, "SELECT * FROM data")
    expected = [str(flush.first_id), "20.0", "-0.5", "1e-300", "2023-07-12", "10:30:45", "a", "192.0.2.7"]
    assert [str(value) for value in row] == expected


async def test_names_have_one_id_also_when_many_writers_add_them_at_once(database: str) -> None:
    async def add(place: int) -> None:
        async with writing(database) as writer:
            each = [reading(place, sensor=f"s{number}") for number in (range(50) if place % 2 else reversed(range(50)))]
            await write(writer, *(each if place % 3 else [batch_of(each)]))

    await asyncio.gather(*map(add, range(6)))
    assert count(database, "sensors") == 50
    assert rows(database, "SELECT DISTINCT count(*) FROM readings GROUP BY sensor_id") == [(6,)]
    assert count(database, "(SELECT DISTINCT id FROM readings) ids") == 300


async def test_ids_are_consecutive_and_never_given_twice(database: str) -> None:
    async with writing(database) as one, writing(database) as other:
        taken: list[int] = []
        for rows_ in (1, 60_000, 50_000, ID_BLOCK_ROWS):
            large = batch_of([reading(0)] * rows_)
            for writer in (one, other):
                first_id = (await writer.prepare([large])).first_id
                taken += (first_id, first_id + rows_ - 1)
    assert len(set(taken)) == len(taken) - 2  # the two flushes of one row begin where they end
    spans = sorted(zip(taken[::2], taken[1::2], strict=True))
    assert all(end < start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("make_trouble", [refuse_heat, swallow_heat])
async def test_what_postgresql_refuses_is_left_out_and_its_neighbours_are_stored(
    database: str, make_trouble: Callable[[str], None]
) -> None:
    make_trouble(database)
    contents: list[Content] = [
        reading(3),
        reading(30),
        batch(1, 2, 40, 4, 50, 60),
        reading(5),
        batch(70),
        batch(*range(20)),
    ]
    bad = {1, 4, 6, 7, 9, *range(25, 30)}
    async with writing(database) as writer:
        flush = await write(writer, *contents)
        again = await write(writer, reading(6))
    assert flush.refused.keys() == bad
    assert all(why and ("heat" in why or "took 0 of 1 rows" in why) for why in flush.refused.values())
    expected = [row for row in as_stored(contents, flush.first_id) if row[-1] - flush.first_id not in bad]  # type: ignore[operator]
    assert [row[:5] + row[7:] for row in stored(database)[:-1]] == [row[:5] + row[7:] for row in expected]
    assert not again.refused
    assert count(database, "flushes") == 2


@pytest.mark.parametrize("make_trouble", [refuse_heat, swallow_heat])
async def test_a_batch_that_is_whole_is_stored_or_refused_as_one(
    database: str, make_trouble: Callable[[str], None]
) -> None:
    make_trouble(database)
    contents = [batch(1, 2), batch(3, 40, 5, is_atomic=True), batch(6, 7, is_atomic=True), batch(50, 8)]
    async with writing(database) as writer:
        flush = await write(writer, *contents)
    assert flush.refused.keys() == {2, 3, 4, 7}
    ids = [id_ - flush.first_id for (id_,) in rows(database, "SELECT id FROM readings ORDER BY id")]  # type: ignore[operator]
    assert ids == [0, 1, 5, 6, 8]


async def test_what_a_constraint_says_only_at_commit_is_found_as_well(database: str) -> None:
    execute(
        database,
        "INSERT INTO sensors (name) VALUES ('sensor 0')",
        "CREATE TABLE known (id integer PRIMARY KEY)",
        "INSERT INTO known SELECT id FROM sensors",
        "ALTER TABLE readings ADD FOREIGN KEY (sensor_id) REFERENCES known DEFERRABLE INITIALLY DEFERRED",
    )
    async with writing(database) as writer:
        flush = await write(writer, reading(0, sensor="sensor 0"), reading(1), batch(*range(6), sensors=2))
    assert flush.refused.keys() == {1, 3, 5, 7}
    assert all(why and "foreign key" in why for why in flush.refused.values())
    assert count(database, "readings") == 4


async def test_a_flush_of_which_nothing_is_taken_is_committed_all_the_same(database: str) -> None:
    """A flush whose rows are all refused commits: it is in the ledger, is answered, and is not tried again."""
    refuse_heat(database)
    async with writing(database) as writer:
        flush = await write(writer, batch(*range(20, 29), is_atomic=True))
        assert flush.refused.keys() == set(range(9))
        assert await writer.was_committed(flush)
    assert count(database, "readings") == 0


async def test_a_ledger_that_refuses_every_flush_is_the_servers_trouble(database: str) -> None:
    execute(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no flush''; END'",
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON flushes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    async with writing(database) as writer:
        with pytest.raises(DatabaseUnavailable, match="no flush"):
            await write(writer, reading(0))
    assert count(database, "readings") == 0


async def test_record_knows_what_was_refused(database: str) -> None:
    refuse_heat(database)
    known: list[set[int]] = []

    def records() -> Records:
        known.append(set(flush.refused))
        return {record("k", content=b"\0hash"): b"\0body", record("lasting", expires=False): FIRST_ANSWER}

    async with writing(database) as writer:
        flush = await writer.prepare([reading(0), reading(40)])
        await writer.write(flush, records)
    assert known == [{1}]
    assert rows(database, "SELECT key_name, key, content_hash, result, expires FROM idempotency_keys ORDER BY 2") == [
        ("API_KEY", "k", b"\0hash", b"\0body", True),
        ("API_KEY", "lasting", b"content", FIRST_ANSWER, False),
    ]


async def test_repeated_record(database: str) -> None:
    async with writing(database) as writer:
        await write(writer, reading(0), records={record(): FIRST_ANSWER})
        with pytest.raises(DuplicateRequest) as repetition:
            await write(writer, reading(0), reading(1), records={record(content=b"other"): b"second"})
        assert repetition.value.results == {("API_KEY", "k1"): StoredResult(b"content", FIRST_ANSWER)}
        await write(writer, reading(1), records={record(key_name="API_KEY_WS"): FIRST_ANSWER})
    assert count(database, "readings") == count(database, "flushes") == count(database, "idempotency_keys") == 2


async def test_new_record_beside_a_repeated_one(database: str) -> None:
    """A new record beside a repeated one is rolled back, so that its sender is not answered for lost readings."""
    async with writing(database) as writer:
        await write(writer, reading(0), records={record("old"): FIRST_ANSWER})
        records = {record(key): key.encode() for key in ("before", "old", "z after")}
        with pytest.raises(DuplicateRequest) as repetition:
            await write(writer, reading(1), reading(0), reading(2), records=records)
        assert repetition.value.results.keys() == {("API_KEY", "old")}
    assert count(database, "readings") == count(database, "idempotency_keys") == 1


async def test_record_that_could_not_be_stored_commits_nothing(database: str) -> None:
    """A record that could not be stored commits nothing, such as if the conflicting row was pruned meanwhile."""
    execute(
        database,
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER swallow BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    async with writing(database) as writer:
        with pytest.raises(DatabaseUnavailable):
            await write(writer, reading(0), records={record(): FIRST_ANSWER})
    assert count(database, "readings") == count(database, "flushes") == 0


async def test_two_processes_with_the_same_records(database: str) -> None:
    async with writing(database) as one, writing(database) as other:
        keys = [record(f"k{number}") for number in range(20)]
        flushes = [await writer.prepare([reading(0)]) for writer in (one, other)]
        outcomes = await asyncio.gather(
            one.write(flushes[0], lambda: dict.fromkeys(keys, b"one")),
            other.write(flushes[1], lambda: dict.fromkeys(reversed(keys), b"other")),
            return_exceptions=True,
        )
    (loser,) = [outcome for outcome in outcomes if outcome is not None]
    assert isinstance(loser, DuplicateRequest)
    assert len(loser.results) == 20
    winner = b"one" if outcomes[0] is None else b"other"
    assert {stored.result for stored in loser.results.values()} == {winner}
    assert count(database, "readings") == count(database, "flushes") == 1


@pytest.mark.parametrize("commits", [True, False])
async def test_record_waits_for_the_transaction_that_has_it(database: str, commits: bool) -> None:
    async with writing(database) as writer, await psycopg.AsyncConnection.connect(database) as first:
        await first.execute("INSERT INTO idempotency_keys VALUES ('API_KEY', 'k1', 'content', 'first', true)")
        writing_too = asyncio.create_task(write(writer, reading(0), records={record(): FIRST_ANSWER}))
        await until_somebody_waits_for_a_lock(database)
        await (first.commit if commits else first.rollback)()
        if commits:
            with pytest.raises(DuplicateRequest):
                await writing_too
        else:
            await writing_too
    assert count(database, "readings") == (0 if commits else 1)


@pytest.mark.parametrize("edition_and_admin_url", ["community"], indirect=True)
async def test_many_rows_a_sensor_go_straight_to_the_columnstore(database: str) -> None:
    contents: list[Content] = [
        reading(7, sensor="sensor 1"),
        batch(*range(2_000), sensors=4),
        batch(-DAY_S, *range(500), sensors=5),
    ]
    async with writing(database) as writer:
        flush = await write(writer, *contents)
    assert flush.into_columnstore
    assert in_columnstore(database) == 2_502
    assert [row[:5] + row[7:] for row in stored(database)] == [
        row[:5] + row[7:] for row in as_stored(contents, flush.first_id)
    ]
    plan = rows(database, "EXPLAIN SELECT * FROM readings WHERE sensor_id = 1")
    assert any("ColumnarScan" in str(line) for line in plan)


@pytest.mark.parametrize("edition_and_admin_url", ["community"], indirect=True)
@pytest.mark.parametrize(
    ("rows_", "sensors", "rows_per_sensor", "goes"),
    [
        (2_000, 400, 5, True),
        (2_000, 401, 5, False),
        (2_000, 2_000, 1, True),
        (2_000, 1, 0, False),
        (MIN_COLUMNSTORE_ROWS, 1, 5, True),
        (MIN_COLUMNSTORE_ROWS - 1, 1, 5, False),
    ],
)
async def test_only_flushes_that_are_large_and_deep_go_there(
    database: str, rows_: int, sensors: int, rows_per_sensor: int, goes: bool
) -> None:
    async with writing(database, columnstore_rows_per_sensor=rows_per_sensor) as writer:
        flush = await write(writer, batch(*range(rows_ - 1), sensors=sensors), reading(0, sensor="sensor 0"))
    assert flush.into_columnstore == goes
    assert in_columnstore(database) == (rows_ if goes else 0)
    assert count(database, "readings") == rows_


async def test_where_there_is_no_columnstore_nothing_goes_there(database: str, edition: str) -> None:
    async with writing(database) as writer:
        flush = await write(writer, batch(*range(2_000)))
    assert flush.into_columnstore == (edition == "community")
    assert count(database, "readings") == 2_000


@pytest.mark.parametrize("edition_and_admin_url", ["community"], indirect=True)
@pytest.mark.parametrize("make_trouble", [refuse_heat, swallow_heat])
async def test_what_the_columnstore_would_not_see_is_refused_there_as_well(
    database: str, make_trouble: Callable[[str], None]
) -> None:
    make_trouble(database)
    async with writing(database) as writer:
        flush = await write(writer, batch(*(40 if place in (7, 1_500) else -place for place in range(2_000))))
    assert flush.refused.keys() == {7, 1_500}
    assert count(database, "readings") == 1_998


@pytest.mark.parametrize("edition_and_admin_url", ["community"], indirect=True)
async def test_rows_come_into_a_chunk_of_the_columnstore_in_either_way(database: str) -> None:
    async with writing(database) as writer:
        await write(writer, batch(*range(1_000)))
        await write(writer, reading(1), batch(3, 4))
        await write(writer, batch(*range(500, 1_500)))
    assert in_columnstore(database) == 2_000
    assert count(database, "readings") == 2_003


async def test_a_flush_is_prepared_while_another_is_written(database: str) -> None:
    """A flush is prepared while another is written, also with new names: it does not need the flusher's connection."""
    async with writing(database) as writer, await psycopg.AsyncConnection.connect(database) as busy:
        first = await writer.prepare([reading(0)])
        await busy.execute("LOCK TABLE flushes IN SHARE MODE")
        being_written = asyncio.create_task(writer.write(first, dict))
        await until_somebody_waits_for_a_lock(database)
        second = await writer.prepare([reading(1, sensor="new", source=Sender("new", "new")), batch(2, sensors=1)])
        assert not being_written.done()
        await busy.rollback()
        await being_written
        await writer.write(second, dict)
    assert second.first_id == first.first_id + 1
    assert [row[1] for row in stored(database)] == ["a", "new", "sensor 0"]


async def test_a_flush_prepared_before_the_connection_was_lost_is_not_written_on_the_next(database: str) -> None:
    """A flush prepared before the connection was lost is not written on the next: its ids may be another server's."""
    async with writing(database) as writer:
        flush = await writer.prepare([reading(0)])
        kill_flusher(database)
        with pytest.raises(DatabaseUnavailable):
            await writer.connect()
        await writer.connect()
        with pytest.raises(DatabaseUnavailable, match="connection"):
            await writer.write(flush, dict)
        await write(writer, reading(0))
    assert count(database, "readings") == count(database, "flushes") == 1


async def test_a_flush_may_be_under_preparation_while_the_connection_is_lost_and_found(database: str) -> None:
    async with writing(database) as writer, await psycopg.AsyncConnection.connect(database) as busy:
        await busy.execute("LOCK TABLE sources IN SHARE MODE")
        preparing = asyncio.create_task(writer.prepare([reading(0)]))
        await until_somebody_waits_for_a_lock(database)
        kill_flusher(database)
        with pytest.raises(DatabaseUnavailable):
            await writer.connect()
        await writer.connect()
        await busy.rollback()
        flush = await preparing
        with pytest.raises(DatabaseUnavailable):
            await writer.write(flush, dict)
        await write(writer, reading(0))
    assert [row[1] for row in stored(database)] == ["a"]


async def test_a_commit_whose_answer_is_lost_is_found_in_the_ledger(database: str) -> None:
    refuse_heat(database)
    with faulty_proxy(database) as proxy:
        async with writing(proxy.url) as writer:
            flush = await writer.prepare([reading(0), reading(40)])
            proxy.fault, proxy.faults_left = Fault.LOSE_COMMIT_ANSWER, 1
            with pytest.raises(OutcomeUnknown):
                await writer.write(flush, dict)
            assert await writer.was_committed(flush)
            assert flush.refused.keys() == {1}
    assert count(database, "readings") == 1


async def test_a_commit_that_never_arrived_is_not_in_the_ledger(database: str) -> None:
    with faulty_proxy(database) as proxy:
        async with writing(proxy.url) as writer:
            flush = await writer.prepare([reading(0)])
            proxy.fault, proxy.faults_left = Fault.LOSE_COMMIT, 1
            with pytest.raises(OutcomeUnknown):
                await writer.write(flush, dict)
            assert not await writer.was_committed(flush)
            await write(writer, reading(0))
    assert count(database, "readings") == count(database, "flushes") == 1


async def test_the_ledger_waits_for_a_lost_transaction_to_end(database: str) -> None:
    async with writing(database) as writer, await psycopg.AsyncConnection.connect(database) as lost:
        flush = await writer.prepare([reading(0)])
        await lost.execute("INSERT INTO flushes (flush_id, rows) VALUES (%s, 1)", [flush.first_id])
        asking = asyncio.create_task(writer.was_committed(flush))
        await until_somebody_waits_for_a_lock(database)
        assert not asking.done()
        await lost.commit()
        assert await asking


async def test_a_silent_server_is_given_up(embedded_database_url: str) -> None:
    """A silent server is given up after the timeout and psycopg's 5 s for an attempt to cancel."""
    with faulty_proxy(embedded_database_url) as proxy:
        async with writing(proxy.url, flush_timeout_s=0.5) as writer:
            flush = await writer.prepare([reading(0)])
            proxy.fault, proxy.faults_left = Fault.STALL_AT_COMMIT, 1
            async with asyncio.timeout(15):
                with pytest.raises(OutcomeUnknown):
                    await writer.write(flush, dict)
                assert not await writer.was_committed(flush)


async def test_a_commit_that_is_answered_after_the_timeout_is_not_called_failed(embedded_database_url: str) -> None:
    """The answer comes while psycopg tries to cancel, too late to be seen, and the connection looks idle."""
    with faulty_proxy(embedded_database_url) as proxy:
        async with writing(proxy.url, flush_timeout_s=0.5) as writer:
            flush = await writer.prepare([reading(0)])
            proxy.fault, proxy.faults_left = Fault.ANSWER_COMMIT_WHEN_CANCELLED, 1
            with pytest.raises(OutcomeUnknown):
                await writer.write(flush, dict)
            assert await writer.was_committed(flush)
    assert count(embedded_database_url, "readings") == 1


async def test_a_connection_killed_while_idle_costs_one_error(database: str) -> None:
    async with writing(database) as writer:
        await write(writer, reading(0))
        kill_flusher(database)
        with pytest.raises(DatabaseUnavailable):
            await write(writer, reading(1))
        await writer.connect()
        await write(writer, reading(1))
    assert count(database, "readings") == 2


async def test_a_writer_without_a_connection_writes_nothing(database: str) -> None:
    async with writing(database) as writer:
        flush = await writer.prepare([reading(0)])
        await writer.close()
        with pytest.raises(DatabaseUnavailable, match="connection"):
            await writer.write(flush, dict)
    assert count(database, "flushes") == 0


async def test_a_database_that_only_reads_is_away(database: str) -> None:
    async with writing(database) as writer:
        await writer.close()
        with psycopg.connect(database, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await writer.connect()


async def test_the_latest_reading_is_the_latest_by_event_time(database: str) -> None:
    async with writing(database) as writer:
        await write(writer, reading(9, sensor="old"), reading(50), reading(20, sensor="b"))
        flush = await write(writer, reading(10), batch_of([reading(50, sensor="b")], source=DASHBOARD))
        await writer._latest.write()
    async with await psycopg.AsyncConnection.connect(database) as connection:
        assert await latest_reading(connection) == (reading(50, sensor="b"), flush.first_id + 1)


async def test_latest_readings_that_fail(embedded_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush is committed once, whatever fails behind its COMMIT."""
    monkeypatch.setattr(LatestReadings, "record", lambda *_: 1 / 0)
    async with writing(embedded_database_url) as writer:
        flush = await write(writer, reading(1))
        assert await writer.was_committed(flush)
    assert stored(embedded_database_url) == as_stored([reading(1)], flush.first_id)


async def test_another_server_behind_a_new_connection_is_asked_for_its_own_ids(database: str) -> None:
    """After a failover that lost sensors, or a restore, another server is asked for its own ids."""
    gateway = batch(*range(MIN_REMEMBERED_NAMES), sensors=MIN_REMEMBERED_NAMES)
    async with writing(database) as writer:
        await write(writer, reading(0), gateway)
        execute(
            database,
            "TRUNCATE readings",
            "TRUNCATE sensors, sources RESTART IDENTITY CASCADE",
            "INSERT INTO sensors (name) VALUES ('somebody else')",
            "INSERT INTO sources (key_name, client_ip) VALUES ('somebody', 'else')",
            "ALTER SEQUENCE reading_ids RESTART 7000001",
        )
        kill_flusher(database)
        with pytest.raises(DatabaseUnavailable):
            await writer.connect()
        await writer.connect()
        flush = await write(writer, reading(1), gateway)
    assert flush.first_id == 7_000_001
    assert stored(database) == as_stored([reading(1), gateway], flush.first_id)


async def test_the_same_sensors_again_have_the_same_ids(database: str) -> None:
    """The same sensors have the same ids again: as a whole array, in another order, alone, and among others."""
    gateway = [reading(place, sensor=f"sensor {place}", source=SCRIPT) for place in range(MIN_REMEMBERED_NAMES)]
    others = [reading(place + 50, sensor=f"sensor {place + 50}", source=SCRIPT) for place in range(100)]
    async with writing(database) as writer:
        flushes = [
            await write(writer, *(batch_of(each, source=SCRIPT) for each in (gateway, others))),
            await write(writer, batch_of(gateway, source=SCRIPT), gateway[7], batch_of(gateway[::-1], source=SCRIPT)),
            await write(writer, batch_of(others, source=SCRIPT)),
        ]
    sent = [[*gateway, *others], [*gateway, gateway[7], *gateway[::-1]], others]
    expected = [row for each, flush in zip(sent, flushes, strict=True) for row in as_stored(each, flush.first_id)]
    assert stored(database) == expected
    assert count(database, "sensors") == 150


async def test_an_id_that_the_ledger_has_is_the_servers_trouble_and_not_the_senders(database: str) -> None:
    async with writing(database) as writer:
        first = await write(writer, reading(0))
        second = await writer.prepare([reading(1)])
        second.rows = replace(second.rows, first_id=first.first_id)
        with pytest.raises(DatabaseUnavailable, match="flushes_pkey"):
            await writer.write(second, dict)
    assert count(database, "readings") == 1


def last_id(url: str, table: str) -> object:
    """Return the last value of an identity."""
    return rows(url, f"SELECT last_value FROM {table}_id_seq")[0][0]


async def test_known_names_use_up_no_ids(database: str) -> None:
    """Known names use up no ids, however often new connections and other processes look them up."""
    each = [reading(place, sensor=f"s{place}") for place in range(3)]
    for _ in range(3):
        async with writing(database) as writer:
            await write(writer, *each, batch_of(each, source=SCRIPT))
            kill_flusher(database)
            with pytest.raises(DatabaseUnavailable):
                await writer.connect()
            await writer.connect()
            await write(writer, *each[::-1])
    async with writing(database) as writer:
        await write(writer, *each, reading(9, sensor="new"))
    assert rows(database, "SELECT max(id) FROM sensors") == [(4,)]
    assert (last_id(database, "sensors"), last_id(database, "sources")) == (4, 2)


async def test_without_ids_left_known_sensors_go_on(database: str) -> None:
    """The readings of new ones are refused with a reason that names the cause, and not the database's fault."""
    known, new = reading(0, sensor="known"), reading(1, sensor="new")
    execute(database, "ALTER TABLE sensors ALTER id RESTART 2147483647")
    async with writing(database) as writer:
        await write(writer, known)
        contents: list[Content] = [
            new,
            known,
            batch_of([known, new, known, new, known], source=SCRIPT),
            batch_of([known, new], source=SCRIPT, is_atomic=True),
            batch_of([new], source=SCRIPT),
        ]
        flush = await write(writer, *contents)
        assert flush.refused.keys() == {0, 3, 5, 7, 8, 9}
        assert [place for place, why in flush.refused.items() if why is None] == [7]
        assert all("2,147,483,647 ids" in why for why in flush.refused.values() if why)
        refuse_heat(database)
        second = await write(writer, *contents, reading(40, sensor="known"))
        assert second.refused.keys() == {0, 3, 5, 7, 8, 9, 10}
        assert not (await write(writer, known)).refused
    assert {row[1] for row in stored(database)} == {"known"}
    assert [row[-1] - flush.first_id for row in stored(database)[1:5]] == [1, 2, 4, 6]  # type: ignore[operator]
    assert count(database, "readings") == 1 + 4 + 4 + 1


async def test_without_ids_left_for_senders_known_ones_go_on(database: str) -> None:
    execute(database, "ALTER TABLE sources ALTER id RESTART 2147483647")
    async with writing(database) as writer:
        await write(writer, reading(0))
        flush = await write(writer, reading(1), batch(2, 3), reading(4, source=SCRIPT))
    assert flush.refused.keys() == {1, 2, 3}
    assert all("sources" in str(why) for why in flush.refused.values())
    assert count(database, "readings") == 2


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM sensors WHERE name = 'a'",
        "TRUNCATE sensors RESTART IDENTITY CASCADE",
        "UPDATE sensors SET name = 'renamed' WHERE name = 'a'",
        "DELETE FROM sources",
    ],
)
async def test_no_reading_gets_an_id_without_a_name(database: str, change: str) -> None:
    """A server forgets names that are deleted, truncated or renamed under it."""
    async with writing(database) as writer:
        await write(writer, reading(0), reading(1, sensor="b"))
        ahead = await writer.prepare([reading(2)])
        execute(database, "TRUNCATE latest_readings, readings", change, "INSERT INTO sensors (name) VALUES ('another')")
        with pytest.raises(DatabaseUnavailable, match="deleted or renamed"):
            await writer.write(ahead, dict)
        await writer.connect()
        await write(writer, reading(3), reading(4, sensor="b"))
        await write(writer, reading(5))
    assert [(row[1], row[5:7]) for row in stored(database)] == [("a", DASHBOARD), ("b", DASHBOARD), ("a", DASHBOARD)]


async def test_a_deletion_waits_for_the_flush_that_is_under_way(database: str) -> None:
    """A deletion waits at its COMMIT for the flush under way, and delays no flush until then."""
    async with writing(database) as writer:
        await write(writer, reading(0))
        with psycopg.connect(database) as deleting:
            deleting.execute("DELETE FROM sensors")
            await write(writer, reading(1))
            with psycopg.connect(database) as flushing:
                flushing.execute("INSERT INTO flushes (flush_id, rows) VALUES (-1, 0)")
                ended = asyncio.create_task(asyncio.to_thread(deleting.commit))
                await until_somebody_waits_for_a_lock(database)
                assert not ended.done()
            await ended
        with pytest.raises(DatabaseUnavailable, match="deleted or renamed"):
            await write(writer, reading(2))
