"""Add a log of readings beyond their sensor's limits, make ``limit_violations`` from it, and add ``checked_days``.

Before, the view showed each sensor's latest reading only: one of a batch of 60 readings.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# A flush adds a row for each sensor, metric and side of its readings, in its own transaction. No foreign key: a sensor
# that was deleted by hand must not stop a flush.
LOG = """
CREATE TABLE limit_violation_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    arrived_at timestamptz NOT NULL DEFAULT now(),
    sensor_id bigint NOT NULL,
    metric text NOT NULL,
    is_above boolean NOT NULL,
    readings bigint NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    time timestamptz NOT NULL,
    value double precision NOT NULL,
    bound double precision NOT NULL
);
COMMENT ON COLUMN limit_violation_log.time IS 'of the furthest reading, whose value is the next column';
COMMENT ON COLUMN limit_violation_log.bound IS 'the limit as it was when the readings came';
CREATE INDEX limit_violation_log_arrived_at ON limit_violation_log (arrived_at);
CREATE INDEX limit_violation_log_sensor_id_last_time ON limit_violation_log (sensor_id, last_time DESC);
"""

# Days whose aggregates were compared with their readings, and the changes that TimescaleDB had recorded for them then.
CHECKED_DAYS = """
CREATE TABLE checked_days (
    day timestamptz PRIMARY KEY,
    changes text NOT NULL
)
"""

# Every change of a limit, by PATCH or by SQL, changes the version in the same transaction.
VERSION = """
CREATE FUNCTION set_limits_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO server_settings (name, value) VALUES ('limits_version', gen_random_uuid())
    ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    RETURN NULL;
END
$$;
CREATE TRIGGER limits_version AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sensor_limits
FOR EACH STATEMENT EXECUTE FUNCTION set_limits_version();
"""

# The furthest violation among the readings of the last hour and the latest readings that are not too old. Both are
# checked against the current limits, so that a violation ends as soon as a wrong limit is corrected.
LIMIT_VIOLATIONS = """
CREATE OR REPLACE VIEW limit_violations AS
SELECT DISTINCT ON (s.id, l.metric) s.id AS sensor_id, l.metric, c.time, c.value, l.lower, l.upper
FROM sensors s
JOIN sensor_limits l ON l.sensor_id = s.id
JOIN (
    SELECT v.sensor_id, v.metric, v.time, v.value, NULL::interval AS age
    FROM limit_violation_log v
    WHERE v.arrived_at > now() - INTERVAL '1 hour'
    UNION ALL
    SELECT p.sensor_id, p.metric, p.time, p.value, now() - p.time FROM latest_points p
) c ON c.sensor_id = s.id AND c.metric = l.metric
WHERE (c.value < l.lower OR c.value > l.upper)
    AND (c.age IS NULL OR abs(extract(epoch FROM c.age)) < greatest(3600, 3 * s.expected_interval_s))
ORDER BY s.id, l.metric, greatest(c.value - l.upper, l.lower - c.value) DESC, c.time DESC
"""
OF_LATEST_READINGS = """
CREATE OR REPLACE VIEW limit_violations AS
SELECT p.sensor_id, p.metric, p.time, p.value, l.lower, l.upper
FROM latest_points p
JOIN sensor_limits l ON l.sensor_id = p.sensor_id AND l.metric = p.metric
WHERE p.value < l.lower OR p.value > l.upper
"""

GRANT = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'sensorflow_reader') THEN
        GRANT SELECT ON limit_violation_log, checked_days TO sensorflow_reader;
    END IF;
END $$
"""

DROP = """
DROP TRIGGER limits_version ON sensor_limits;
DROP FUNCTION set_limits_version;
DROP TABLE limit_violation_log, checked_days;
DELETE FROM server_settings WHERE name = 'limits_version';
"""


def upgrade() -> None:
    op.execute(LOG)
    op.execute(CHECKED_DAYS)
    op.execute(VERSION)
    op.execute(LIMIT_VIOLATIONS)
    op.execute(GRANT)


def downgrade() -> None:
    op.execute(OF_LATEST_READINGS)
    op.execute(DROP)
