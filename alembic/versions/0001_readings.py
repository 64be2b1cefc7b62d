"""Add readings, the names behind their ids, the ledger of flushes, and the view ``data`` with the old columns."""

import sqlalchemy
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE server_settings (
    name text PRIMARY KEY,
    value text NOT NULL
);
INSERT INTO server_settings (name, value) VALUES ('timezone', 'UTC');

CREATE TABLE sensors (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);

CREATE TABLE sources (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_name text NOT NULL,
    client_ip text NOT NULL,
    UNIQUE (key_name, client_ip)
);

-- A flush is known by the id of its first row.
CREATE TABLE flushes (
    flush_id bigint PRIMARY KEY,
    rows integer NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now()
);

-- No unique constraint and no trigger, so that TimescaleDB can write straight into its columnstore. The ledger above
-- keeps a reading from being stored twice.
CREATE TABLE readings (
    time timestamptz NOT NULL,
    sensor_id integer NOT NULL,
    id bigint NOT NULL,
    source_id integer NOT NULL,
    temperature double precision,
    humidity double precision,
    pressure double precision
);
CREATE INDEX readings_sensor_id_time ON readings (sensor_id, time DESC);

-- Each nextval takes 100,000 ids.
CREATE SEQUENCE reading_ids INCREMENT BY 100000;
"""

HYPERTABLE = """
SELECT create_hypertable('readings', by_range('time', INTERVAL '1 day'), create_default_indexes => false)
"""

DATA = """
CREATE VIEW data AS
SELECT r.id, r.temperature, r.humidity, r.pressure,
       (r.time AT TIME ZONE (SELECT value FROM server_settings WHERE name = 'timezone'))::date AS date_recorded,
       date_trunc(
           'second', r.time AT TIME ZONE (SELECT value FROM server_settings WHERE name = 'timezone')
       )::time AS time_recorded,
       s.name AS sensor_id, o.client_ip
FROM readings r
LEFT JOIN sensors s ON s.id = r.sensor_id
LEFT JOIN sources o ON o.id = r.source_id
"""

DROP = """
DROP VIEW data;
DROP TABLE readings, flushes, sources, sensors, server_settings;
DROP SEQUENCE reading_ids;
"""


def has_timescaledb() -> bool:
    """Return whether this database has the extension, in either edition."""
    found = op.get_bind().execute(sqlalchemy.text("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"))
    return bool(found.scalar())


def upgrade() -> None:
    op.execute(TABLES)
    if has_timescaledb():
        op.execute(HYPERTABLE)
    op.execute(DATA)


def downgrade() -> None:
    op.execute(DROP)
