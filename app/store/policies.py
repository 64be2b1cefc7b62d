"""TimescaleDB's background jobs, on its Community edition: refreshing aggregates, the columnstore, retention.

The settings say what they should be; a start brings the jobs to that, and leaves alone those that are so already.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from app.store.database import Connection
from app.store.tiers import TIERS

logger = logging.getLogger(__name__)

READINGS_COLUMNSTORE_AFTER = timedelta(days=1)
"""A day that has been over for so long goes into the columnstore: what comes late is still taken there."""
DROP_MARGIN = timedelta(hours=2)
"""A reading is taken until it has the age of retention; before its day is dropped the aggregates must have it."""


@dataclass(frozen=True, slots=True)
class Retention:
    """The days for which readings and each tier of aggregates are kept. 0: without end."""

    raw_days: float
    minute_days: float
    hour_days: float
    day_days: float

    def by_table(self) -> Mapping[str, float]:
        """Return the days by the names of the tables."""
        return {
            "readings": self.raw_days,
            **dict(zip((tier.name for tier in TIERS), (self.minute_days, self.hour_days, self.day_days), strict=True)),
        }


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job: its procedure, and how a table gets one."""

    procedure: str
    add: str
    remove: str


REFRESH = Kind(
    "policy_refresh_continuous_aggregate",
    "SELECT add_continuous_aggregate_policy(%(table)s::regclass, start_offset => %(start_offset)s::interval,"
    " end_offset => %(end_offset)s::interval, schedule_interval => %(schedule_interval)s)",
    "SELECT remove_continuous_aggregate_policy(%(table)s::regclass, if_exists => true)",
)
COLUMNSTORE = Kind(
    "policy_compression",
    "SELECT add_compression_policy(%(table)s::regclass, compress_after => %(compress_after)s::interval)",
    "SELECT remove_compression_policy(%(table)s::regclass, if_exists => true)",
)
RETENTION = Kind(
    "policy_retention",
    "SELECT add_retention_policy(%(table)s::regclass, drop_after => %(drop_after)s::interval)",
    "SELECT remove_retention_policy(%(table)s::regclass, if_exists => true)",
)

JOBS = """
SELECT proc_name, hypertable_name, schedule_interval, (config->>'start_offset')::interval,
       (config->>'end_offset')::interval, (config->>'compress_after')::interval, (config->>'drop_after')::interval
FROM timescaledb_information.jobs
WHERE hypertable_schema = current_schema AND proc_name LIKE 'policy_%'
"""
ARGUMENTS = ("schedule_interval", "start_offset", "end_offset", "compress_after", "drop_after")


def desired_jobs(retention: Retention) -> Iterator[tuple[Kind, str, Mapping[str, timedelta] | None]]:
    """Every job that a table may have, and its arguments. None where it should have none."""
    yield COLUMNSTORE, "readings", {"compress_after": READINGS_COLUMNSTORE_AFTER}
    for tier in TIERS:
        window = {"start_offset": tier.start_offset, "end_offset": tier.end_offset}
        yield REFRESH, tier.name, {**window, "schedule_interval": tier.schedule}
        yield COLUMNSTORE, tier.name, {"compress_after": tier.columnstore_after}
    for table, days in retention.by_table().items():
        yield RETENTION, table, {"drop_after": timedelta(days=days) + DROP_MARGIN} if days else None


async def apply_policies(connection: Connection, retention: Retention) -> None:
    """Bring the jobs to the retention's policies. Raises what the driver raises."""
    found = {}
    async for procedure, table, *values in await connection.execute(JOBS):
        found[procedure, table] = dict(zip(ARGUMENTS, values, strict=True))
    for kind, table, arguments in desired_jobs(retention):
        present = found.get((kind.procedure, table))
        if arguments is None if present is None else arguments is not None and arguments.items() <= present.items():
            continue
        async with connection.transaction():
            await connection.execute(kind.remove, {"table": table})
            if arguments is not None:
                await connection.execute(kind.add, {"table": table, **arguments})
        logger.info("%s of %s: %s", kind.procedure, table, arguments or "none")
