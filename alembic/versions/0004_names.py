"""Saves ids of names, tells servers when names change, and computes ages without a wrong clock.

Earlier servers used up an identity value for every name that they looked up. If more than half of the values are used,
the values above the highest id of a row are freed. Otherwise they are not: the readings of a sensor that was deleted
by hand may still have them, and the next new sensor would get those readings.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

GIVE_BACK = """
SELECT setval(pg_get_serial_sequence('{table}', 'id'), greatest(highest, 1), highest IS NOT NULL)
FROM (SELECT max(id) AS highest FROM {table}) AS used
WHERE pg_sequence_last_value(pg_get_serial_sequence('{table}', 'id')::regclass) > (1 << 30)
"""

# A process remembers the ids of names. A transaction that deletes or renames such a row leaves its own id here, and
# each flush checks that this id has not changed since the flush looked up its ids. Both need the lock on flushes, so
# that no flush with deleted ids is under way when the change commits. The lock is taken at COMMIT, so that an open
# transaction holds up no flush. TRUNCATE has no deferred trigger.
CHANGES = """
CREATE FUNCTION names_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF current_setting('sensorflow.prunes', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF NOT EXISTS (
        SELECT FROM server_settings WHERE name = 'names_changed_by' AND value = pg_current_xact_id()::text
    ) THEN
        LOCK TABLE flushes IN SHARE MODE;
        INSERT INTO server_settings (name, value) VALUES ('names_changed_by', pg_current_xact_id()::text)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    END IF;
    RETURN NULL;
END
$$;

-- Called once the flush has its lock on flushes. It is volatile, so that it sees what is committed by then.
CREATE FUNCTION if_names_are_as_of(remembered text, result integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce((SELECT value FROM server_settings WHERE name = 'names_changed_by'), '') <> remembered THEN
        RAISE EXCEPTION 'rows of sensors or sources were deleted or renamed since their ids were looked up';
    END IF;
    RETURN result;
END
$$;
"""
TRIGGERS = """
CREATE CONSTRAINT TRIGGER names_change AFTER DELETE OR UPDATE OF {columns} ON {table}
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION names_change();
CREATE TRIGGER names_truncated AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION names_change();
"""
DROP_TRIGGERS = """
DROP TRIGGER names_change ON {table};
DROP TRIGGER names_truncated ON {table};
"""
DROP_CHANGES = """
DROP FUNCTION names_change();
DROP FUNCTION if_names_are_as_of(text, integer);
DELETE FROM server_settings WHERE name = 'names_changed_by';
"""

# The default marks all existing rows as used today, without rewriting them.
SOURCES = "ALTER TABLE sources ADD last_used_on date NOT NULL DEFAULT current_date"
DROP_SOURCES = "ALTER TABLE sources DROP last_used_on"

# As in 0003, but with the servers' clock, which readings are checked against when they arrive. The servers store in
# server_settings how far the database's clock is ahead of theirs.
STATUS = """
CREATE OR REPLACE VIEW sensor_status AS
SELECT s.id AS sensor_id, s.name, s.label, s.location, s.latitude, s.longitude, s.expected_interval_s,
       l.time AS last_seen_at,
       extract(epoch FROM {now} - l.time)::double precision AS age_s,
       -- A sensor whose clock was far ahead would otherwise count as online until that time.
       l.time < {now} + INTERVAL '1 hour' AND l.time > {now} - make_interval(secs => coalesce(
           3 * s.expected_interval_s,
           (SELECT value::double precision FROM server_settings WHERE name = 'offline_after_s')
       )) AS is_online,
       l.id, l.temperature, l.humidity, l.pressure
FROM sensors s
LEFT JOIN latest_readings l ON l.sensor_id = s.id
"""
SERVERS_NOW = """(now() - make_interval(secs => coalesce(
           (SELECT value::double precision FROM server_settings WHERE name = 'clock_skew_s'), 0
       )))"""
DROP_SKEW = "DELETE FROM server_settings WHERE name = 'clock_skew_s'"

TABLES = {"sensors": "id, name", "sources": "id, key_name, client_ip"}


def upgrade() -> None:
    op.execute(CHANGES)
    op.execute(SOURCES)
    for table, columns in TABLES.items():
        op.execute(TRIGGERS.format(table=table, columns=columns))
        op.execute(GIVE_BACK.format(table=table))
    op.execute(STATUS.format(now=SERVERS_NOW))


def downgrade() -> None:
    op.execute(STATUS.format(now="now()"))
    op.execute(DROP_SKEW)
    for table in TABLES:
        op.execute(DROP_TRIGGERS.format(table=table))
    op.execute(DROP_SOURCES)
    op.execute(DROP_CHANGES)
