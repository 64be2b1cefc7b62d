"""The tiers of aggregates: what they are called, how wide their buckets are, and when which of them are refreshed.

Pure. Each tier is made of the one before it, and the first of ``readings``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

Span: TypeAlias = tuple[datetime, datetime]
"""A time range, half-open."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LATE_AFTER = timedelta(hours=1)
"""A reading whose own time is further back when it comes is refreshed by itself. Every policy's window begins well
before, so whatever is not late passes through all of them."""


def moment(time_us: float) -> str:
    """Format a time, or infinity, in microseconds since 1970 UTC, as PostgreSQL reads it."""
    return "infinity" if time_us == math.inf else str(EPOCH + timedelta(microseconds=time_us))


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier, and the window [now - start_offset, now - end_offset) that its policy refreshes."""

    name: str
    width: timedelta
    start_offset: timedelta
    end_offset: timedelta
    schedule: timedelta
    columnstore_after: timedelta
    """How long its own columnstore waits for late readings."""

    def floor(self, moment: datetime) -> datetime:
        """Return the start of the bucket that a time lies in."""
        return EPOCH + (moment - EPOCH) // self.width * self.width

    def ceil(self, moment: datetime) -> datetime:
        """Return the first start of a bucket that is not before a time."""
        return EPOCH - (EPOCH - moment) // self.width * self.width


# Up to end_offset behind now a tier is not materialized but made of the finer one by each query, which costs little; so
# a reading that is not late is in the coarser tiers as soon as it is in the finest.
TIERS = (
    Tier(
        "readings_1m",
        timedelta(minutes=1),
        start_offset=timedelta(hours=3),
        end_offset=timedelta(minutes=1),
        schedule=timedelta(seconds=30),
        columnstore_after=timedelta(days=7),
    ),
    Tier(
        "readings_1h",
        timedelta(hours=1),
        start_offset=timedelta(hours=8),
        end_offset=timedelta(hours=1),
        schedule=timedelta(minutes=5),
        columnstore_after=timedelta(days=30),
    ),
    Tier(
        "readings_1d",
        timedelta(days=1),
        start_offset=timedelta(days=4),
        end_offset=timedelta(days=1),
        schedule=timedelta(hours=1),
        columnstore_after=timedelta(days=365),
    ),
)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Merge spans into as few as cover the same times. Both are in the order of their starts."""
    found: list[Span] = []
    for start, end in spans:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
