"""The tiers of aggregates: what they are called, how wide their buckets are, and how far each is materialized.

Pure. Each tier is made of the one before it, and the first of ``readings``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TypeAlias, TypeVar

Span: TypeAlias = tuple[datetime, datetime]
"""A time range, half-open."""
Moment = TypeVar("Moment", datetime, int)
"""A time, or a number of minutes."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST = datetime(1000, 1, 1, tzinfo=UTC)
"""Stands for -infinity, which Python lacks. No reading is from before it."""


def moment(time_us: float) -> str:
    """Format a time, or infinity, in microseconds since 1970 UTC, as PostgreSQL reads it."""
    return "infinity" if time_us == math.inf else str(EPOCH + timedelta(microseconds=time_us))


def floor(time: datetime, width: timedelta) -> datetime:
    """Return the last multiple of a width, counted from 1970 UTC, that is not after a time."""
    return EPOCH + (time - EPOCH) // width * width


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier."""

    name: str
    width: timedelta
    behind: timedelta
    """How far the tier is materialized behind the finest one. What is younger, each query makes of the finer tier, at
    little cost; so a reading is in the coarser tiers as soon as it is in the finest."""
    columnstore_after: timedelta
    """From the end of a chunk to its conversion to the columnstore: late readings change what is there at a cost."""

    def floor(self, moment: datetime) -> datetime:
        """Return the start of the bucket that a time lies in."""
        return floor(moment, self.width)

    def ceil(self, moment: datetime) -> datetime:
        """Return the first start of a bucket that is not before a time."""
        return EPOCH - (EPOCH - moment) // self.width * self.width

    def materialized_until(self, refreshed_until: datetime) -> datetime:
        """Return how far this tier is materialized when the finest one is refreshed up to a time."""
        return self.floor(refreshed_until - self.behind)


TIERS = (
    Tier("readings_1m", timedelta(minutes=1), behind=timedelta(0), columnstore_after=timedelta(hours=1)),
    Tier("readings_1h", timedelta(hours=1), behind=timedelta(hours=1), columnstore_after=timedelta(days=30)),
    Tier("readings_1d", timedelta(days=1), behind=timedelta(days=1), columnstore_after=timedelta(days=365)),
)


def merged(spans: Iterable[tuple[Moment, Moment]]) -> list[tuple[Moment, Moment]]:
    """Merge spans into as few as cover the same times. Both are in the order of their starts."""
    found: list[tuple[Moment, Moment]] = []
    for start, end in spans:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def with_few_gaps(spans: list[tuple[Moment, Moment]], most: int) -> list[tuple[Moment, Moment]]:
    """Merge the spans with the smallest gaps between them until there are at most ``most``. All are in order."""
    if len(spans) <= most:
        return spans
    gaps: list[int] = sorted(range(1, len(spans)), key=lambda place: spans[place][0] - spans[place - 1][1])
    cuts = [0, *sorted(gaps[len(spans) - most :]), len(spans)]
    return [(spans[first][0], spans[last - 1][1]) for first, last in pairwise(cuts)]
