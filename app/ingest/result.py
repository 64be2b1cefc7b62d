"""The results of requests: a committed reading, or the result of a batch.

Pure. A committed reading is its JSON, encoded once for its sender and all subscribers. The fields and their order are
the contract of POST /api/temperature_reading and of /ws/sensor_updates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple, Self

import orjson
import pyarrow as pa

from app.errors import SensorFlowError
from app.ingest.batch import Reading
from app.ingest.decode.columns import Decoded, RowError
from app.ingest.decode.ranges import as_ranges
from app.ingest.idempotency import StoredResult

MAX_ERRORS = 100
"""Rejected readings of a request that are described; all are counted."""


class CommittedReading(NamedTuple):
    """A committed reading: its id in the table, and the JSON object of the 201 and of the WebSocket message."""

    id: int
    time_us: int
    sensor: str
    payload: bytes

    def to_json(self) -> bytes:
        """Return the payload."""
        return self.payload


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a request with many readings."""

    stored: int
    """How many are committed, or held where its sender does not wait for the commit."""
    rejected: int = 0
    rejected_rows: str = ""
    """The positions of the rejected among the readings sent, from 1, as ranges."""
    errors: Sequence[RowError] = ()
    """Why: the first MAX_ERRORS of them."""
    unknown_columns: Sequence[str] = ()
    hints: Sequence[str] = ()
    """What the sender should know about readings that were stored, in sentences."""
    is_backfill_wanted: bool = False
    """Whether some were rejected only for being older than a request without backfill may bring."""
    refused: Mapping[int, str | None] = field(default_factory=dict)
    """Those that PostgreSQL would not take, by their position in the batch, and why; None where only another reading of
    a batch that is all or nothing is at fault."""

    @classmethod
    def of(cls, decoded: Decoded, stored: int, refused: Mapping[int, str | None] = MappingProxyType({})) -> Self:
        """Return the result of a body, ``stored`` of whose readings are stored."""
        culprits = {row: why for row, why in refused.items() if why is not None}
        rejected_rows, errors = decoded.rejected_rows, decoded.errors
        if culprits:
            first = sorted(culprits)[:MAX_ERRORS]
            by_database = [RowError(decoded.rows[row].as_py(), None, culprits[row], None) for row in first]
            errors = sorted([*errors, *by_database], key=attrgetter("row"))[:MAX_ERRORS]
            more = decoded.rows.take(pa.array(culprits, pa.int64()))
            rejected_rows = pa.concat_arrays([rejected_rows, more]).sort()
        return cls(
            stored,
            decoded.rejected + len(culprits),
            as_ranges(rejected_rows),
            errors,
            decoded.unknown_columns,
            decoded.hints if stored else (),
            decoded.is_backfill_wanted,
            refused,
        )

    @classmethod
    def from_json(cls, result: bytes) -> Self:
        """Read what ``to_json`` has written. Before the schema's revision 0007 it was the answer itself,
        with all its hints.
        """
        fields = orjson.loads(result)
        if "accepted" in fields:
            fields["stored"] = fields.pop("accepted")
        errors = [RowError(**error) for error in fields.pop("errors", ())]
        return cls(**fields, errors=errors)

    def to_json(self) -> bytes:
        """Return all that a repetition of the request is told."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "refused"}
        return orjson.dumps({name: value for name, value in fields.items() if value or name == "stored"})


def receipt_encoder(timezone: tzinfo) -> Callable[[Reading, int], CommittedReading]:
    """Return a function from a reading and its id to its receipt, whose dates and times are in ``timezone``."""

    @lru_cache(maxsize=1_024)  # a second that others have brought makes a receipt 1.4 µs, a new one 3.7
    def date_and_time(second: int) -> tuple[str, str]:
        moment = datetime.fromtimestamp(second, timezone).isoformat()
        return moment[:10], moment[11:19]

    def encode(reading: Reading, reading_id: int) -> CommittedReading:
        date_recorded, time_recorded = date_and_time(reading.time_us // 1_000_000)
        # The metrics stand here by name: 0.35 µs, where an object put together from METRICS took 0.81.
        payload = orjson.dumps(
            {
                "id": reading_id,
                "temperature": reading.temperature,
                "humidity": reading.humidity,
                "pressure": reading.pressure,
                "date_recorded": date_recorded,
                "time_recorded": time_recorded,
                "sensor_id": reading.sensor,
                "client_ip": reading.source.client_ip,
            }
        )
        return CommittedReading(reading_id, reading.time_us, reading.sensor, payload)

    return encode


WriteResult = CommittedReading | BatchResult | StoredResult
WriteOutcome = WriteResult | SensorFlowError
"""What the sender of a request is told: its result, or why there is none."""
