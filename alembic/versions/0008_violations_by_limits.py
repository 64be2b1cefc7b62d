"""Find limit violations by the limits, where these are few.

The view took all metrics of all latest readings, and then those that have a limit: of a million sensors, a second for
a thousand limits.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Up to so many limits the latest readings are looked up one by one, which takes a microsecond or two for each. With
# more, all are scanned once for each metric. PostgreSQL can't choose by itself: a condition of a join is not pushed
# into the branches of latest_points, unless LIMIT keeps the lateral subquery apart.
FEW_LIMITS = 10_000

# The furthest beyond of what came in the last hour, and of the latest readings that still say something. Both are held
# against the limits of now, so that a violation ends as soon as a wrong limit is corrected.
BEYOND_AND_NOT_TOO_OLD = """(p.value < l.lower OR p.value > l.upper)
        AND abs(extract(epoch FROM now() - p.time)) < greatest(3600, 3 * s.expected_interval_s)"""
BY_LIMITS = f"""
CREATE OR REPLACE VIEW limit_violations AS
WITH counted AS MATERIALIZED (
    SELECT count(*) <= {FEW_LIMITS} AS are_few FROM (SELECT FROM sensor_limits LIMIT {FEW_LIMITS} + 1) AS limits
)
SELECT DISTINCT ON (c.sensor_id, c.metric) c.sensor_id, c.metric, c.time, c.value, c.lower, c.upper
FROM (
    SELECT l.sensor_id, l.metric, v.time, v.value, l.lower, l.upper
    FROM limit_violation_log v
    JOIN sensor_limits l ON l.sensor_id = v.sensor_id AND l.metric = v.metric
    WHERE v.arrived_at > now() - INTERVAL '1 hour' AND (v.value < l.lower OR v.value > l.upper)
    UNION ALL
    SELECT l.sensor_id, l.metric, p.time, p.value, l.lower, l.upper
    FROM sensor_limits l
    CROSS JOIN LATERAL (
        SELECT time, value FROM latest_points WHERE sensor_id = l.sensor_id AND metric = l.metric LIMIT 1
    ) p
    JOIN sensors s ON s.id = l.sensor_id
    WHERE (SELECT are_few FROM counted) AND {BEYOND_AND_NOT_TOO_OLD}
    UNION ALL
    SELECT l.sensor_id, l.metric, p.time, p.value, l.lower, l.upper
    FROM sensor_limits l
    JOIN latest_points p ON p.sensor_id = l.sensor_id AND p.metric = l.metric
    JOIN sensors s ON s.id = l.sensor_id
    WHERE NOT (SELECT are_few FROM counted) AND {BEYOND_AND_NOT_TOO_OLD}
) c
ORDER BY c.sensor_id, c.metric, greatest(c.value - c.upper, c.lower - c.value) DESC, c.time DESC
"""
BY_LATEST_READINGS = """
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


def upgrade() -> None:
    op.execute(BY_LIMITS)


def downgrade() -> None:
    op.execute(BY_LATEST_READINGS)
