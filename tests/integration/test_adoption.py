"""A database of the original SensorFlow: the messages about it, and how its readings are taken over."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from app.errors import ConfigurationError, DatabaseUnavailable
from app.store import adoption
from app.store.adoption import adopt
from app.store.database import Database, migrate
from tests.support.server import run_command

# As the original's models make it; rows by hand may lack what they want.
ORIGINAL = """
CREATE TABLE data (
    id serial PRIMARY KEY,
    temperature double precision,
    humidity double precision,
    pressure double precision,
    date_recorded date,
    time_recorded time,
    sensor_id varchar,
    client_ip varchar
);
CREATE INDEX ix_data_id ON data (id);
CREATE INDEX ix_data_sensor_id ON data (sensor_id);
INSERT INTO data (temperature, humidity, pressure, date_recorded, time_recorded, sensor_id, client_ip)
SELECT n / 3.0, 40 + n / 7.0, 1000 + n / 11.0, DATE '2024-01-01' + n * 5, TIME '14:30:45', 'sensor ' || n % 3,
       CASE n % 2 WHEN 0 THEN '192.0.2.' || n % 4 END
FROM generate_series(1, 120) n;
"""
BAD = """
INSERT INTO data (temperature, humidity, pressure, date_recorded, time_recorded, sensor_id)
VALUES ('NaN', 'Infinity', NULL, '2025-01-01', '00:00', 'a'), (1, 2, 3, '2025-01-01', '00:00', ' '),
       (1, 2, 3, NULL, '00:00', 'a'), ('NaN', 2, 3, '2025-01-01', '23:59:59', 'half')
"""


@pytest.fixture
def original(empty_database: str) -> str:
    """Return the connection string of an original's database."""
    execute(empty_database, ORIGINAL)
    return empty_database


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def prepare(url: str) -> None:
    async def run() -> None:
        database = Database(url, timezone="America/Sao_Paulo", offline_after_s=300)
        try:
            await database.prepare()
        finally:
            await database.close()

    asyncio.run(run())


def assert_adopted(url: str) -> None:
    """Assert that the view ``data`` shows the original's table, except what that table lacks about clients."""
    columns = "id, temperature, humidity, pressure, date_recorded, time_recorded, sensor_id, coalesce(client_ip, '')"
    good = rows(url, f"SELECT {columns} FROM data_of_original WHERE id <= 120 ORDER BY id")
    assert rows(url, f"SELECT {columns} FROM data WHERE id <= 120 ORDER BY id") == good
    assert rows(url, "SELECT name, l.id FROM latest_readings l JOIN sensors s ON s.id = sensor_id ORDER BY 1")[-3:] == [
        ("sensor 0", 120),
        ("sensor 1", 118),
        ("sensor 2", 119),
    ]


def test_original_is_recognised(original: str) -> None:
    """A start says that the database is the original's, and the command that takes its readings over."""
    with pytest.raises(ConfigurationError, match=r"ids up to 120, from 2024-01-06 to 2025-08-23.* migrate --adopt\."):
        migrate(original)
    assert rows(original, "SELECT count(*) FROM data") == [(120,)]


def test_adoption(original: str, edition: str) -> None:
    """Every reading is taken over with its id, wall clock time and values, and those that are none are told."""
    execute(original, BAD)
    taken = adopt(original)
    assert (taken.rows, taken.left_out, taken.ids_left_out) == (121, 3, [121, 122, 123])
    assert f"{taken.first:%Y-%m-%d %H:%M:%S}" == "2024-01-06 17:30:45"
    prepare(original)
    assert_adopted(original)
    assert rows(original, "SELECT humidity, temperature FROM data WHERE sensor_id = 'half'") == [(2.0, None)]
    assert rows(original, "SELECT nextval('reading_ids')") == [(100_001,)]
    stale = rows(original, "SELECT count(*) FROM stale_ranges")
    assert stale == [(0 if edition == "community" else 3,)]
    assert adopt(original).rows == 0
    migrate(original, "base", down=True)
    execute(original, "DROP TABLE data_of_original")
    with pytest.raises(ConfigurationError, match="There is nothing to adopt"):
        adopt(original)


def test_adoption_goes_on(original: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adoption that was cut short continues: it loses nothing and stores nothing twice."""
    monkeypatch.setattr(adoption, "PIECE_ENDS", adoption.PIECE_ENDS.replace("OFFSET 50", "OFFSET 7"))
    with monkeypatch.context() as cut_short:
        fails = "DELETE FROM adopted WHERE 1 / (CASE WHEN id > 60 THEN 0 ELSE 1 END) = 0 RETURNING id"
        cut_short.setattr(adoption, "NO_READINGS", fails)
        with pytest.raises(DatabaseUnavailable, match="division by zero"):
            adopt(original)
    assert rows(original, "SELECT count(*), max(id) FROM readings") == [(56, 56)]
    assert adopt(original).rows == 64
    prepare(original)
    assert_adopted(original)


def test_adoption_that_has_only_renamed(original: str) -> None:
    """A server does not start between the first step and the copy, which sets the ids of new readings."""
    execute(original, "ALTER TABLE data RENAME TO data_of_original")
    with pytest.raises(ConfigurationError, match="not taken over yet: run python -m app migrate --adopt"):
        prepare(original)
    assert adopt(original).rows == 120
    prepare(original)
    assert_adopted(original)


def test_tables_of_another_program(empty_database: str) -> None:
    """Tables that are neither ours nor the original's are named, and left alone."""
    execute(empty_database, "CREATE TABLE data (x integer)", "CREATE TABLE sensors (name text)")
    with pytest.raises(ConfigurationError, match=r"another program's tables .*: data, sensors.* CREATE SCHEMA"):
        migrate(empty_database)
    with pytest.raises(ConfigurationError, match="There is nothing to adopt"):
        adopt(empty_database)


def test_command(embedded_database_url: str, tmp_path: Path) -> None:
    """The command reports what it took over, the zone of the times, and the rows that it left out."""
    execute(embedded_database_url, ORIGINAL, BAD)
    keys = {"API_KEY": "", "API_KEY_WS": ""}
    status, said = run_command(tmp_path, "serve", DATABASE_URL=embedded_database_url)
    assert (status, "python -m app migrate --adopt" in said) == (1, True), said
    status, said = run_command(
        tmp_path, "migrate", "--adopt", "Mars/Olympus", DATABASE_URL=embedded_database_url, **keys
    )
    assert (status, "is not an IANA time zone" in said) == (1, True), said
    status, said = run_command(tmp_path, "migrate", "--adopt", "Europe/Madrid", DATABASE_URL=embedded_database_url)
    assert status == 3, said
    assert "121 readings taken over, from 2024-01-06 13:30:45 to" in said
    assert "read as those of Europe/Madrid" in said
    assert "ids: 121, 122, 123" in said
