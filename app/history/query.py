"""Queries of the history, and the place from which an answer goes on. Pure.

Rows come by sensor, in the order of the sensors' ids, then by time, then by the readings' ids. So the last row of a
page says where the next one begins, also among readings of the same moment.
"""

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2s
from typing import NamedTuple

import pyarrow as pa

from app.errors import InvalidParameter

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


class Bucket(Enum):
    """The readings that a row stands for: one, or all readings of one sensor in a minute, an hour or a day."""

    RAW = "raw"
    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"


LONGEST_SPANS_US = ((3 * HOUR_US, Bucket.RAW), (3 * DAY_US, Bucket.MINUTE), (90 * DAY_US, Bucket.HOUR))
"""How long a span each bucket serves where none is asked for. Each gives a chart two to ten thousand points a sensor at
one reading a second: 10,800 readings, 4,320 minutes, 2,160 hours; days beyond."""


def bucket_for(span_us: int, *, age_us: int, kept_us: Mapping[Bucket, int]) -> Bucket:
    """Return the bucket that suits a span which began so long ago, and whose rows are still kept. ``kept_us``: how long
    the rows of each are kept; 0: without end.
    """
    suiting = (bucket for longest_us, bucket in LONGEST_SPANS_US if span_us <= longest_us)
    return next((bucket for bucket in suiting if not kept_us[bucket] or age_us <= kept_us[bucket]), Bucket.DAY)


@dataclass(frozen=True, slots=True)
class Query:
    """The rows that are asked for, and what of them. Times are microseconds since 1970 UTC."""

    sensor_ids: Sequence[int] | None
    """None: all there are."""
    from_us: int
    to_us: int
    """The first moment that is not asked for; of a bucket it is the start that counts."""
    bucket: Bucket
    metrics: Sequence[str]


class Position(NamedTuple):
    """A row: what comes after it is still to be read."""

    sensor_id: int
    time_us: int
    id: int
    """0 of a bucket."""


class Page(NamedTuple):
    """Some rows of an answer."""

    rows: pa.RecordBatch
    """``time`` (timestamp[us, UTC]), ``sensor_id`` (the name), then ``count`` (of a bucket) and what there is of each
    metric."""
    last: Position


class Cursor(NamedTuple):
    """Where a query goes on, and what it had taken from the clock. As text it suits a URL."""

    from_us: int
    to_us: int
    bucket: Bucket
    after: Position

    def encode(self, asked: str) -> str:
        """As text, for those who ask the same again. ``asked`` is the query in their words."""
        content = _PACKED.pack(self.from_us, self.to_us, _BUCKETS.index(self.bucket), *self.after)
        return base64.urlsafe_b64encode(content + _digest(content, asked)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, asked: str) -> "Cursor":
        """Return the row that ``encode`` wrote, for the same query.

        Raises:
            InvalidParameter: it is something else, or of another query.
        """
        try:
            packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            packed = b""
        content, digest = packed[: _PACKED.size], packed[_PACKED.size :]
        # No secret is in it: who makes up a cursor sees nothing that a query of theirs would not show.
        if len(content) < _PACKED.size or digest != _digest(content, asked):
            raise InvalidParameter(
                "cursor should be the next_cursor of the same query: sensor_id, from, to, bucket, metrics as they were."
            )
        from_us, to_us, bucket, *after = _PACKED.unpack(content)
        return cls(from_us, to_us, _BUCKETS[bucket], Position(*after))


_PACKED = struct.Struct("<qqBiqq")
_BUCKETS = tuple(Bucket)
_DIGEST_BYTES = 8


def _digest(content: bytes, asked: str) -> bytes:
    return blake2s(content + asked.encode(), digest_size=_DIGEST_BYTES).digest()
