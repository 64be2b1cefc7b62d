"""The schema in every edition: up, down, up again, and by many at once."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

from app.errors import ConfigurationError, DatabaseUnavailable
from app.store.database import ALEMBIC_INI, Database, migrate
from app.store.locks import MIGRATION_LOCK
from tests.support.databases import new_database

TABLES = {"readings", "sensors", "sources", "flushes", "server_settings", "data", "idempotency_keys"}
OWN_RELATIONS = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S', 'p')
"""

SOME_READINGS = """
INSERT INTO readings
SELECT '2026-01-01'::timestamptz + number * interval '5 minutes', number %% 7, number, 1, number / 3.0, NULL, 1e-300
FROM generate_series(%(first_id)s, %(first_id)s + 999) AS number
"""
HAS_TIMESCALEDB = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')"
HIDDEN = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'p')
    AND NOT has_table_privilege('sensorflow_reader', oid, 'SELECT')
"""
VIEWS_ON_CATALOGUE = """
SELECT rule.ev_class::regclass, used.oid::regclass
FROM pg_depend JOIN pg_rewrite rule ON rule.oid = objid JOIN pg_class used ON used.oid = refobjid
JOIN pg_class view ON view.oid = rule.ev_class
WHERE view.relnamespace = current_schema::regnamespace
    AND used.relnamespace::regnamespace::text IN ('timescaledb_information', '_timescaledb_catalog')
"""
COLUMNSTORE_SETTINGS = """
SELECT attname, segmentby_column_index, orderby_column_index, orderby_asc
FROM timescaledb_information.compression_settings WHERE hypertable_name = 'readings' ORDER BY attname
"""

ADD_POLICIES = """
SELECT add_compression_policy('readings', INTERVAL '1 day'), add_retention_policy('readings', INTERVAL '30 days'),
       add_continuous_aggregate_policy('readings_1m', INTERVAL '1 hour', INTERVAL '1 minute', INTERVAL '1 minute')
"""
POLICIES = "SELECT proc_name FROM timescaledb_information.jobs WHERE hypertable_schema = 'public'"
BEFORE_ADDING = "SELECT starts_at, ends_at, array_agg(id) FROM stale_ranges GROUP BY 1, 2"
"""What a server of revision 0008 asks before it adds its policies."""


def relations(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute(OWN_RELATIONS)}


def test_the_schema_goes_up_down_and_up_again(empty_database: str) -> None:
    migrate(empty_database)
    assert relations(empty_database) >= TABLES
    migrate(empty_database, "base", down=True)
    assert relations(empty_database) == {"alembic_version"}
    migrate(empty_database)
    assert relations(empty_database) >= TABLES


@pytest.mark.parametrize("interval_s", ["1e12", "1e300", "NaN", "Infinity", "315576001"])
def test_unreadable_interval_is_shortened(empty_database: str, interval_s: str) -> None:
    """A sensor whose expected interval made every list of sensors fail can be read after the migration."""
    migrate(empty_database, "0003")
    with psycopg.connect(empty_database) as connection:
        connection.execute("INSERT INTO sensors (name, expected_interval_s) VALUES ('a', %s::float8)", [interval_s])
        connection.execute("INSERT INTO latest_readings (sensor_id, time, id) SELECT id, now(), 1 FROM sensors")
    migrate(empty_database)
    with psycopg.connect(empty_database) as connection:
        found = connection.execute("SELECT expected_interval_s, is_online FROM sensor_status").fetchall()
        assert found == [(315_576_000, True)]
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute("UPDATE sensors SET expected_interval_s = %s::float8", [interval_s])


def test_many_processes_may_migrate_at_once(empty_database: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, [empty_database] * 6))
    assert relations(empty_database) >= TABLES


def test_the_edition_is_told_as_it_is(empty_database: str, edition: str) -> None:
    async def prepare() -> str:
        database = Database(empty_database, timezone="UTC", offline_after_s=300)
        try:
            return (await database.prepare()).kind
        finally:
            await database.close()

    kinds = {"embedded": {"plain"}, "community": {"community"}, "apache": {"apache"}}
    assert asyncio.run(prepare()) in kinds.get(edition, {"plain", "community", "apache"})


def test_readings_is_a_hypertable_wherever_there_is_timescaledb(database: str, edition: str) -> None:
    with psycopg.connect(database) as connection:
        if connection.execute("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'").fetchone() == (0,):
            assert edition in {"embedded", "given"}
            return
        found = connection.execute("SELECT hypertable_name FROM timescaledb_information.hypertables").fetchall()
    assert found == [("readings",)]


def test_no_view_keeps_timescaledb_from_replacing_its_own(database: str) -> None:
    """No view depends on TimescaleDB's views, because its updates replace them."""
    with psycopg.connect(database) as connection:
        assert connection.execute(VIEWS_ON_CATALOGUE).fetchall() == []


def test_other_tables_may_be_in_the_schema_and_the_reader_sees_none_of_them(empty_database: str) -> None:
    """The schema may have tables of another role, and the reader sees none of them."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        if connection.execute(HAS_TIMESCALEDB).fetchone() == (True,):
            connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        connection.execute("CREATE TABLE private (secret text)")
        connection.execute("CREATE ROLE owner_of_readings LOGIN CREATEROLE")
        connection.execute("GRANT ALL ON SCHEMA public TO owner_of_readings")
        url = make_conninfo(empty_database, user="owner_of_readings")
        try:
            migrate(url)
            migrate(url, "base", down=True)
            migrate(url)
            connection.execute("SET ROLE owner_of_readings")
            connection.execute("CREATE TABLE created_later (secret text)")
            connection.execute("RESET ROLE")
            hidden = {"private", "created_later", "idempotency_keys", "server_settings", "alembic_version"}
            assert {name for (name,) in connection.execute(HIDDEN)} == hidden
        finally:
            connection.execute("DROP OWNED BY owner_of_readings CASCADE")
            connection.execute("DROP ROLE owner_of_readings")


def test_newer_schema(database: str) -> None:
    """A schema from a newer version is refused with its revision, the newest known one, and what to run."""
    head = ScriptDirectory.from_config(Config(ALEMBIC_INI)).get_current_head()
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(
        ConfigurationError, match=rf"revision 9999, and .*revisions up to {head}.*migrate --down {head}"
    ):
        migrate(database)


def test_unknown_revision(database: str) -> None:
    """A revision that does not exist is named, and nothing changes."""
    with pytest.raises(ConfigurationError, match="Can't migrate to 'nonesuch'"):
        migrate(database, "nonesuch", down=True)
    assert relations(database) >= TABLES


def test_migration_lock(empty_database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A migration that waits for another names it, gives up in time, and may be tried again."""
    monkeypatch.setattr("app.store.database.MIGRATION_WAIT_S", 0.3)
    with psycopg.connect(empty_database, application_name="the other one") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        holder = rf"the other one, process {connection.info.backend_pid}\b"
        with pytest.raises(DatabaseUnavailable, match=holder):
            migrate(empty_database)
    assert len([said for said in caplog.messages if re.search(holder, said)]) == 1
    migrate(empty_database)
    assert relations(empty_database) >= TABLES


def test_migration_lock_of_tables(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that waits for a table gives up soon, so that flushes don't wait long behind it."""
    monkeypatch.setattr("app.store.database.MIGRATION_LOCK_TIMEOUT", "100ms")
    migrate(empty_database)
    with psycopg.connect(empty_database) as connection:
        connection.execute("LOCK sensors IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            migrate(empty_database, "base", down=True)


def test_what_is_stored_stays_while_the_columnstore_comes_and_goes(empty_database: str, edition: str) -> None:
    def readings(connection: psycopg.Connection) -> list[tuple[object, ...]]:
        return connection.execute("SELECT * FROM readings ORDER BY id").fetchall()

    migrate(empty_database, "0001")
    assert "idempotency_keys" not in relations(empty_database)
    with psycopg.connect(empty_database) as connection:
        connection.execute(SOME_READINGS, {"first_id": 1})
        connection.commit()
        migrate(empty_database, "0002")
        connection.execute(SOME_READINGS, {"first_id": 1_001})
        connection.execute("INSERT INTO idempotency_keys VALUES ('API_KEY', 'k', 'hash', 201, 'body', true)")
        if edition == "community":
            connection.execute("SELECT compress_chunk(show_chunks('readings'))")
        connection.execute(SOME_READINGS, {"first_id": 2_001})
        before = readings(connection)
        assert len(before) == 3_000
        connection.commit()
        migrate(empty_database, "0001", down=True)
        assert readings(connection) == before
        connection.commit()
        migrate(empty_database)
        assert readings(connection) == before
        assert connection.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)


def test_results_of_idempotency_keys(empty_database: str) -> None:
    """Answers that an older version stored stay valid as results, up and down, and keep their status."""
    answers = {
        "single": (201, b'{"id":1,"sensor_id":"\\"rejected\\":"}', True),
        "batch": (201, b'{"stored":2}', True),
        "in part": (422, b'{"stored":1,"rejected":1,"rejected_rows":"2","errors":[]}', True),
        "in memory": (202, b'{"accepted":2}', True),
        "file": (201, b'{"bytes":4,"sha256":"00","parts":1}', False),
    }
    migrate(empty_database, "0006")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for key, (status, answer, expires) in answers.items():
            connection.execute(
                "INSERT INTO idempotency_keys VALUES ('API_KEY', %s, 'hash', %s, %s, %s)",
                [key, status, answer, expires],
            )
        migrate(empty_database)
        found: dict[str, bytes] = dict(connection.execute("SELECT key, result FROM idempotency_keys").fetchall())
        assert found == {key: answer for key, (_, answer, _) in answers.items()}
        migrate(empty_database, "0006", down=True)
        back = connection.execute("SELECT key, status, answer, expires FROM idempotency_keys").fetchall()
        assert {key: values for key, *values in back} == {key: [*values] for key, values in answers.items()}


def test_the_columnstore_is_there_exactly_where_the_licence_has_one(database: str, edition: str) -> None:
    async def prepare() -> bool:
        opened = Database(database, timezone="UTC", offline_after_s=300)
        try:
            return (await opened.prepare()).direct_compress
        finally:
            await opened.close()

    if edition == "given":
        pytest.skip("who knows what it is")
    assert asyncio.run(prepare()) == (edition == "community")
    with psycopg.connect(database) as connection:
        if edition == "embedded":
            return
        query = "SELECT compression_enabled FROM timescaledb_information.hypertables"
        assert connection.execute(query).fetchall() == [(edition == "community",)]
        if edition == "community":
            settings = connection.execute(COLUMNSTORE_SETTINGS).fetchall()
            assert settings == [("sensor_id", 1, None, None), ("time", None, 1, False)]


@pytest.mark.parametrize(("used", "ids"), [(2_147_483_647, (3, 1)), (1_000_000, (1_000_001, 1_000_001))])
def test_ids_that_no_name_has_are_given_back(empty_database: str, used: int, ids: tuple[int, int]) -> None:
    """Older servers used them up. While there are enough, none is: readings of a deleted sensor may have it."""
    migrate(empty_database, "0003")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("INSERT INTO sensors (name) VALUES ('a'), ('b')")
        use_up = "SELECT setval(pg_get_serial_sequence(name, 'id'), %s) FROM unnest('{sensors,sources}'::text[]) name"
        connection.execute(use_up, [used])
        migrate(empty_database)
        sensor = connection.execute("INSERT INTO sensors (name) VALUES ('c') RETURNING id").fetchone()
        add = "INSERT INTO sources (key_name, client_ip) VALUES ('k', 'ip') RETURNING id"
        assert (sensor, connection.execute(add).fetchone()) == ((ids[0],), (ids[1],))


def test_policies_are_removed_for_good(community_admin_url: str) -> None:
    """Policies are removed, and a server of the version before, which may still run, can't add them again."""
    with new_database(community_admin_url) as url, psycopg.connect(url, autocommit=True) as connection:
        migrate(url, "0008")
        connection.execute(ADD_POLICIES)
        assert len(connection.execute(POLICIES).fetchall()) == 3
        migrate(url)
        assert connection.execute(POLICIES).fetchall() == []
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute(BEFORE_ADDING)
        migrate(url, "0008", down=True)
        connection.execute(BEFORE_ADDING)
        migrate(url)
