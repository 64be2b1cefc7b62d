"""Let the server maintain the database: no policies, late readings by the minute, and a record of the work.

Readings before the frontier are late: the flush that brings them records their minutes. Whatever TimescaleDB's policies
have refreshed stays; the server goes on from there.
"""

import sqlalchemy
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STALE_RANGES = """
ALTER TABLE stale_ranges ADD recorded_at timestamptz NOT NULL DEFAULT now();
-- A server of the version before that still runs would add its policies again. It fails at this name before that.
ALTER TABLE stale_ranges RENAME id TO range_id;

-- Called in a flush with minutes since 1970 UTC, after it has its lock on flushes. It is volatile, so that it sees the
-- frontier of that moment.
CREATE FUNCTION record_late(starts bigint[], ends bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    frontier CONSTANT timestamptz := coalesce(
        (SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_frontier'), 'infinity'
    );
BEGIN
    IF to_timestamp(60 * starts[1]) < frontier THEN
        INSERT INTO stale_ranges (starts_at, ends_at)
        SELECT to_timestamp(60 * start), least(to_timestamp(60 * stop), frontier)
        FROM unnest(starts, ends) AS late (start, stop) WHERE to_timestamp(60 * start) < frontier;
    END IF;
END
$$;

-- Does what if_names_are_as_of does, and records late readings, in a third of the time that a statement for that takes.
CREATE FUNCTION begin_flush(remembered text, result integer, starts bigint[], ends bigint[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    changed_by text;
    frontier timestamptz;
BEGIN
    SELECT max(value) FILTER (WHERE name = 'names_changed_by'),
           max(value) FILTER (WHERE name = 'aggregates_frontier')::timestamptz
    INTO changed_by, frontier
    FROM server_settings WHERE name IN ('names_changed_by', 'aggregates_frontier');
    IF coalesce(changed_by, '') <> remembered THEN
        RAISE EXCEPTION 'rows of sensors or sources were deleted or renamed since their ids were looked up';
    END IF;
    IF to_timestamp(60 * starts[1]) < coalesce(frontier, 'infinity') THEN
        PERFORM record_late(starts, ends);
    END IF;
    RETURN result;
END
$$;
"""
DROP_STALE_RANGES = """
DROP FUNCTION begin_flush(text, integer, bigint[], bigint[]);
DROP FUNCTION record_late(bigint[], bigint[]);
ALTER TABLE stale_ranges DROP recorded_at;
ALTER TABLE stale_ranges RENAME range_id TO id;
"""

WORKS = """
-- A row for each kind of work, whichever process does it.
CREATE TABLE maintenance (
    work text PRIMARY KEY,
    runs bigint NOT NULL,
    failures bigint NOT NULL,
    busy_s double precision NOT NULL,
    every_s double precision NOT NULL,
    can_wait boolean NOT NULL,
    first_started_at timestamptz NOT NULL,
    last_started_at timestamptz NOT NULL,
    last_run_s double precision NOT NULL,
    last_succeeded_at timestamptz,
    last_error text
);

-- The work that has not been done for an hour, or for three times its own interval. Work that can wait for others is
-- not late, unless it fails.
CREATE VIEW late_maintenance AS
SELECT work, extract(epoch FROM now() - succeeded_at)::double precision AS age_s, last_error
FROM (SELECT *, coalesce(last_succeeded_at, first_started_at) AS succeeded_at FROM maintenance) AS works
WHERE now() - succeeded_at > greatest(INTERVAL '1 hour', make_interval(secs => 3 * every_s))
    AND (last_error IS NOT NULL OR NOT can_wait)
UNION ALL
SELECT 'all work', extract(epoch FROM now() - max(last_started_at))::double precision, NULL
FROM maintenance HAVING max(last_started_at) < now() - INTERVAL '1 hour';
"""
# In 0003 this is a function on TimescaleDB, because PostgreSQL would record dependencies of a view.
OF_SERVER = """
SELECT NULL::integer AS job_id, work AS job, NULL::text AS table_name,
       CASE WHEN last_error IS NULL THEN 'Success' ELSE 'Failed' END AS last_status, last_started_at, last_run_s,
       NULL::timestamptz AS next_start_at, runs, failures
FROM maintenance"""
OF_TIMESCALEDB = """
SELECT j.job_id, j.proc_name::text, j.hypertable_name::text, s.last_run_status, s.last_run_started_at,
       extract(epoch FROM s.last_run_duration)::double precision, s.next_start, coalesce(s.total_runs, 0),
       coalesce(s.total_failures, 0)
FROM timescaledb_information.jobs j
LEFT JOIN timescaledb_information.job_stats s ON s.job_id = j.job_id
WHERE j.hypertable_schema = current_schema"""
NOTHING = """
SELECT NULL::integer AS job_id, NULL::text AS job, NULL::text AS table_name, NULL::text AS last_status,
       NULL::timestamptz AS last_started_at, NULL::double precision AS last_run_s,
       NULL::timestamptz AS next_start_at, NULL::bigint AS runs, NULL::bigint AS failures
WHERE false"""
JOBS_FUNCTION = """
CREATE OR REPLACE FUNCTION database_jobs() RETURNS TABLE (
    job_id integer, job text, table_name text, last_status text, last_started_at timestamptz,
    last_run_s double precision, next_start_at timestamptz, runs bigint, failures bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
{query}
$$;
"""
JOBS_VIEW = "CREATE OR REPLACE VIEW database_jobs AS {query}"

# Where there is no policy for the columnstore, the history had not all been refreshed: it is, from its oldest chunk on.
# Else the policies have refreshed all but what is late, and for the last days TimescaleDB knows what it is.
TAKE_OVER = """
INSERT INTO server_settings AS s (name, value)
SELECT 'readings_deleted_until', date_trunc('day', greatest(
    (SELECT value::timestamptz FROM server_settings WHERE name = 'readings_deleted_until'),
    (
        SELECT now() - (config->>'drop_after')::interval FROM timescaledb_information.jobs
        WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' AND proc_name = 'policy_retention'
    )
), 'UTC')::text AS until
WHERE EXISTS (SELECT FROM server_settings WHERE name = 'readings_deleted_until') OR EXISTS (
    SELECT FROM timescaledb_information.jobs
    WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' AND proc_name = 'policy_retention'
)
ON CONFLICT (name) DO UPDATE SET value = excluded.value;

INSERT INTO server_settings (name, value)
SELECT 'aggregates_frontier', CASE
    WHEN EXISTS (
        SELECT FROM timescaledb_information.jobs
        WHERE (hypertable_schema, hypertable_name, proc_name) = (current_schema, 'readings', 'policy_compression')
    ) THEN least(
        (SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_refreshed_until'), now()
    ) - interval '2 days'
    ELSE coalesce(
        (
            SELECT min(range_start) FROM timescaledb_information.chunks
            WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
        ),
        date_trunc('minute', now()) - interval '1 minute'
    )
END::text
ON CONFLICT (name) DO UPDATE SET value = excluded.value;
INSERT INTO server_settings (name, value)
SELECT 'aggregates_refreshed_until', value FROM server_settings WHERE name = 'aggregates_frontier'
ON CONFLICT (name) DO UPDATE SET value = excluded.value;
DELETE FROM stale_ranges
WHERE starts_at >= (SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_frontier');

SELECT remove_compression_policy(t::regclass, if_exists => true),
       remove_retention_policy(t::regclass, if_exists => true)
FROM unnest(ARRAY['readings', 'readings_1m', 'readings_1h', 'readings_1d']) AS t;
SELECT remove_continuous_aggregate_policy(t::regclass, if_exists => true)
FROM unnest(ARRAY['readings_1m', 'readings_1h', 'readings_1d']) AS t;
"""
# The version before adds its policies at its start, once it has refreshed what is stale.
GIVE_BACK = "DELETE FROM server_settings WHERE name = 'aggregates_frontier'"

CONTINUOUS = """
SELECT 1 FROM timescaledb_information.continuous_aggregates
WHERE view_schema = current_schema AND view_name = 'readings_1m'
"""

READER = "sensorflow_reader"
GRANT = f"""
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{READER}') THEN
        GRANT SELECT ON maintenance, late_maintenance TO {READER};
    END IF;
END $$
"""


def has_aggregates() -> bool:
    """Return whether the aggregates are continuous, and not views."""
    if not op.get_context().opts["is_community"]():
        return False
    return op.get_bind().execute(sqlalchemy.text(CONTINUOUS)).scalar() is not None


def upgrade() -> None:
    op.execute(STALE_RANGES)
    op.execute(WORKS)
    if has_aggregates():
        op.execute(JOBS_FUNCTION.format(query=OF_SERVER + "\nUNION ALL" + OF_TIMESCALEDB))
        op.execute(TAKE_OVER)
    else:
        op.execute(JOBS_VIEW.format(query=OF_SERVER))
    op.execute(GRANT)


def downgrade() -> None:
    if has_aggregates():
        op.execute(JOBS_FUNCTION.format(query=OF_TIMESCALEDB))
        op.execute(GIVE_BACK)
    else:
        op.execute(JOBS_VIEW.format(query=NOTHING))
    op.execute("DROP VIEW late_maintenance")
    op.execute("DROP TABLE maintenance")
    op.execute(DROP_STALE_RANGES)
