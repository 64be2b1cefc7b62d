"""Adoption of the original SensorFlow's readings. Its only table ``data`` has the name of a view of ours.

The table is renamed and kept. Its rows are copied in pieces; each piece's transaction also notes how far it went, so
that an interrupted adoption continues. Rows that are no readings stay behind and are counted.

The original wrote wall clock times of America/Sao_Paulo, whatever the machine's zone was.
"""

import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg

from app.errors import ConfigurationError
from app.ingest.decode.reading import MAX_SENSOR_ID_LENGTH
from app.store.database import (
    KEPT_ORIGINAL,
    ORIGINAL_METRICS,
    connect_to_migrate,
    find_original,
    has_aggregate_tables,
    has_continuous_aggregates,
    migrate,
    migrating,
    translate_driver_errors,
)
from app.store.latest import REPLACE_LATEST
from app.store.locks import ADOPTION_LOCK

logger = logging.getLogger(__name__)

ZONE = "America/Sao_Paulo"
PIECE_ROWS = 20_000
PIECE_DAYS = 50
"""Each day is a chunk of readings, and a transaction holds locks on all that it touches."""
SAY_EVERY_S = 10.0
KEY_NAME = "original SensorFlow"
"""Where the source of other readings has the name of an API key."""

TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({ADOPTION_LOCK})"
ADOPTED_UNTIL = "SELECT value::bigint FROM server_settings WHERE name = 'adopted_until_id'"
# Rows keep their ids; new readings continue after the last, by whole blocks of the sequence.
BEGIN = f"""
WITH original AS (SELECT coalesce(min(id), 1) - 1 AS before, coalesce(max(id), 0)::bigint AS last FROM {KEPT_ORIGINAL}),
     ours AS (SELECT setval('reading_ids', greatest(nextval('reading_ids'), (last / 100000 + 1) * 100000 + 1), false)
              FROM original)
INSERT INTO server_settings (name, value) SELECT 'adopted_until_id', before::text FROM original, ours
"""
PIECE_ENDS = f"""
WITH piece AS (
    SELECT id, date_recorded FROM {KEPT_ORIGINAL} WHERE id > %(after)s ORDER BY id LIMIT {PIECE_ROWS}
), days AS (
    SELECT min(id) AS first_id FROM piece GROUP BY date_recorded
)
SELECT coalesce(
    (SELECT first_id - 1 FROM days ORDER BY first_id OFFSET {PIECE_DAYS} LIMIT 1), (SELECT max(id) FROM piece)
)
"""
_METRICS = ", ".join(ORIGINAL_METRICS)
FINITE = "CASE WHEN abs(d.{0}::float8) < 'Infinity' THEN d.{0}::float8 END AS {0}"
ROWS = f"""
CREATE TEMPORARY TABLE adopted ON COMMIT DROP AS
SELECT id::bigint, (date_recorded + time_recorded) AT TIME ZONE %(zone)s AS time, sensor_id AS sensor,
       coalesce(client_ip::text, '') AS client_ip,
       {", ".join(FINITE.format(name) for name in ORIGINAL_METRICS)}
FROM {KEPT_ORIGINAL} d WHERE id > %(after)s AND id <= %(until)s
"""
NO_READINGS = f"""
DELETE FROM adopted
WHERE time IS NULL OR NOT time BETWEEN '1900-01-01 00:00Z' AND '2261-12-31 00:00Z'
    OR sensor IS NULL OR btrim(sensor) = '' OR char_length(sensor) > {MAX_SENSOR_ID_LENGTH}
    OR num_nonnulls({_METRICS}) = 0
RETURNING id
"""
COPY = f"""
INSERT INTO sensors (name)
SELECT DISTINCT sensor FROM adopted WHERE sensor NOT IN (SELECT name FROM sensors)
ORDER BY 1 ON CONFLICT (name) DO NOTHING;
INSERT INTO sources (key_name, client_ip)
SELECT DISTINCT '{KEY_NAME}', client_ip FROM adopted a
WHERE NOT EXISTS (SELECT FROM sources s WHERE (s.key_name, s.client_ip) = ('{KEY_NAME}', a.client_ip))
ORDER BY 2 ON CONFLICT (key_name, client_ip) DO NOTHING;
INSERT INTO readings (time, sensor_id, id, source_id, {_METRICS})
SELECT a.time, s.id, a.id, o.id, {_METRICS}
FROM adopted a
JOIN sensors s ON s.name = a.sensor
JOIN sources o ON (o.key_name, o.client_ip) = ('{KEY_NAME}', a.client_ip)
ORDER BY s.id, a.time DESC;
INSERT INTO latest_readings AS l (sensor_id, time, id, {_METRICS})
SELECT DISTINCT ON (s.id) s.id, a.time, a.id, {_METRICS}
FROM adopted a JOIN sensors s ON s.name = a.sensor
ORDER BY s.id, a.time DESC, a.id DESC
{REPLACE_LATEST}
WHERE (excluded.time, excluded.id) > (l.time, l.id);
"""
# Continuous aggregates go on from the oldest of them.
NOT_REFRESHED = """
UPDATE server_settings SET value = least(value::timestamptz, (SELECT min(time) FROM adopted))::text
WHERE name IN ('aggregates_refreshed_until', 'aggregates_frontier')
"""
ARE_LATE = """
INSERT INTO stale_ranges (starts_at, ends_at)
SELECT date_trunc('minute', min(time)), date_trunc('minute', max(time)) + interval '1 minute'
FROM adopted HAVING count(*) > 0
"""
SUMMARY = "SELECT count(*), min(time), max(time) FROM adopted"
SET_ADOPTED_UNTIL = "UPDATE server_settings SET value = %(until)s::bigint::text WHERE name = 'adopted_until_id'"


@dataclass(slots=True)
class Adoption:
    """The result of a run."""

    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None
    left_out: int = 0
    """Rows without a time, a sensor or any finite value: they are in the kept table only."""
    ids_left_out: list[int] = field(default_factory=list)
    """The first of them."""


def adopt(url: str, zone: str = ZONE) -> Adoption:
    """Take the original's readings over, and bring the schema up to date. Go on where an earlier run was cut short.

    A server may run meanwhile, once the schema is there.

    Raises:
        ConfigurationError: there is nothing to adopt, another process is at it, or there is no such zone.
        DatabaseUnavailable: the database can't be used now; run it again.
    """
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(f"{zone!r} is not an IANA time zone. Give one like {ZONE}") from error
    with migrating(url) as connection:
        if find_original(connection, "data"):
            if find_original(connection, KEPT_ORIGINAL):
                raise ConfigurationError(f"The tables data and {KEPT_ORIGINAL} both exist: rename one of them first")
            connection.execute(f"ALTER TABLE data RENAME TO {KEPT_ORIGINAL}")
        elif not find_original(connection, KEPT_ORIGINAL):
            raise ConfigurationError("There is nothing to adopt: the schema lacks the original SensorFlow's table data")
    migrate(url)
    with translate_driver_errors(), connect_to_migrate(url, autocommit=False) as guard, guard.transaction():
        if guard.execute(TRY_LOCK).fetchone() != (True,):
            raise ConfigurationError("Another process is adopting the original's readings: wait for it to end")
        with connect_to_migrate(url, autocommit=True) as connection:
            return _copy_all(connection, zone)


def _copy_all(connection: psycopg.Connection, zone: str) -> Adoption:
    adoption = Adoption()
    for_aggregates = (
        NOT_REFRESHED
        if has_continuous_aggregates(connection)
        else ARE_LATE
        if has_aggregate_tables(connection)
        else None
    )
    if connection.execute(ADOPTED_UNTIL).fetchone() is None:
        connection.execute(BEGIN)
    (after,) = connection.execute(ADOPTED_UNTIL).fetchone() or (0,)
    said_at = time.monotonic()
    while True:
        (until,) = connection.execute(PIECE_ENDS, {"after": after}).fetchone() or (None,)
        if until is None:
            return adoption
        with connection.transaction():
            connection.execute(ROWS, {"after": after, "until": until, "zone": zone})
            left_out = [id_ for (id_,) in connection.execute(NO_READINGS).fetchall()]
            connection.execute(COPY)
            if for_aggregates is not None:
                connection.execute(for_aggregates)
            rows, first, last = connection.execute(SUMMARY).fetchone() or (0, None, None)
            connection.execute(SET_ADOPTED_UNTIL, {"until": until})
        adoption.rows += rows
        adoption.left_out += len(left_out)
        adoption.ids_left_out = [*adoption.ids_left_out, *left_out][:10]
        adoption.first = min(filter(None, (adoption.first, first)), default=None)
        adoption.last = max(filter(None, (adoption.last, last)), default=None)
        after = until
        if time.monotonic() - said_at > SAY_EVERY_S:
            said_at = time.monotonic()
            logger.info("took over %d readings of the original so far", adoption.rows)
