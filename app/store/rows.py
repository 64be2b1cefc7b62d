"""The rows of a flush: its readings with ids in place of names, each at a position that counts from 0.

Pure. Rows are encoded when they are asked for, so that a flush holds its readings once.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from app.ingest.batch import Batch, Content, Reading
from app.store.latest import LatestRow
from app.store.wire import columns_of, encode_copy, in_order, pack_reading

DAY_US = 86_400_000_000

Rows: TypeAlias = bytes | pa.RecordBatch
"""The rows of one request: a row as it goes over the wire, or rows with WIRE_SCHEMA."""


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Rows of a flush that one request sent."""

    start: int
    """The position of its first row."""
    rows: Rows
    count: int
    is_atomic: bool
    """Whether all of it is stored or nothing."""

    def split(self) -> "list[RowSlice]":
        """Return the slice's rows in two parts, or none if it must stay whole."""
        if isinstance(self.rows, bytes) or self.is_atomic or self.count == 1:
            return []
        middle = self.count // 2
        return [
            RowSlice(self.start, self.rows.slice(0, middle), middle, is_atomic=False),
            RowSlice(self.start + middle, self.rows.slice(middle), self.count - middle, is_atomic=False),
        ]


class SingleRow(NamedTuple):
    """A reading that came alone. An id is None where the table of its name has none left."""

    start: int
    """Its position."""
    reading: Reading
    sensor_id: int | None
    source_id: int | None

    def encode(self, first_id: int) -> bytes:
        """Return the row as it goes over the wire. Nothing if an id is missing."""
        if self.sensor_id is None or self.source_id is None:
            return b""
        return pack_reading(self.reading, self.sensor_id, first_id + self.start, self.source_id)


class BatchRows(NamedTuple):
    """The readings of a batch. Ids are null, or None, where the table of their names has none left."""

    start: int
    """The position of its first row."""
    batch: Batch
    sensor_ids: pa.Int32Array
    """Those of the batch's ``sensors``."""
    source_id: int | None

    @property
    def has_ids(self) -> bool:
        """Whether every row can be written."""
        return self.source_id is not None and not self.sensor_ids.null_count

    def encode(self, first_id: int) -> pa.RecordBatch:
        """Return the rows that have both ids, with WIRE_SCHEMA. None, if a batch that is all or nothing lacks one."""
        rows = columns_of(self.batch, self.sensor_ids, first_id + self.start, self.source_id)
        if self.has_ids:
            return rows
        if self.batch.is_atomic:
            return rows.slice(0, 0)
        return rows.filter(pc.and_(pc.is_valid(rows["sensor_id"]), pc.is_valid(rows["source_id"])))

    def slices(self, first_id: int) -> Iterator[RowSlice]:
        """Yield the same rows in slices, each without a gap."""
        rows = self.encode(first_id)
        if self.has_ids:
            yield RowSlice(self.start, rows, self.batch.rows, self.batch.is_atomic)
            return
        for row, row_id in enumerate(rows["id"].to_pylist()):
            yield RowSlice(row_id - first_id, rows.slice(row, 1), 1, is_atomic=False)

    def unnamed(self, no_sensor_id: str, no_source_id: str) -> dict[int, str | None]:
        """Return the rows without an id, by position, and why. None where only another row lacks one."""
        if self.has_ids:
            return {}
        positions = range(self.start, self.start + self.batch.rows)
        if self.source_id is None:
            return dict.fromkeys(positions, no_source_id)
        unnamed: dict[int, str | None] = dict.fromkeys(positions) if self.batch.is_atomic else {}
        of_rows = self.sensor_ids.take(self.batch.columns["sensor"])
        missing = pc.indices_nonzero(pc.is_null(of_rows)).to_pylist()
        return unnamed | {self.start + row: no_sensor_id for row in missing}


@dataclass(frozen=True, slots=True)
class FlushRows:
    """All rows of a flush. Row ids follow each other from ``first_id`` on, by position."""

    first_id: int
    count: int
    contents: Sequence[Content]
    singles: Sequence[SingleRow]
    batches: Sequence[BatchRows]

    @classmethod
    def of(
        cls,
        first_id: int,
        contents: Sequence[Content],
        *,
        source_ids: Iterable[int | None],
        sensor_ids: Iterable[int | None],
        sensor_ids_of_batches: Iterable[pa.Int32Array],
    ) -> Self:
        """Return the rows of the contents, in their order.

        Args:
            first_id: the id of the first row.
            contents: readings and batches.
            source_ids: one for each content.
            sensor_ids: one for each reading among them.
            sensor_ids_of_batches: those of the sensors of each batch among them.
        """
        singles, batches = [], []
        of_readings, of_batches = iter(sensor_ids), iter(sensor_ids_of_batches)
        start = 0
        for content, source_id in zip(contents, source_ids, strict=True):
            if isinstance(content, Reading):
                singles.append(SingleRow(start, content, next(of_readings), source_id))
            else:
                batches.append(BatchRows(start, content, next(of_batches), source_id))
            start += content.rows
        return cls(first_id, start, contents, singles, batches)

    @property
    def batch_rows(self) -> int:
        """The number of rows of the batches."""
        return sum(each.batch.rows for each in self.batches)

    def packed(self) -> list[bytes]:
        """Return the readings that came alone, as they go over the wire."""
        return [each.encode(self.first_id) for each in self.singles]

    def ordered(self) -> pa.RecordBatch | None:
        """Return the rows of the batches with WIRE_SCHEMA, by sensor and from the latest back. None without batches."""
        columns = [each.encode(self.first_id) for each in self.batches]
        return in_order(columns) if any(rows.num_rows for rows in columns) else None

    def single_rows(self) -> Iterator[LatestRow]:
        """Yield the readings that came alone and have ids."""
        for start, reading, sensor_id, source_id in self.singles:
            if sensor_id is not None and source_id is not None:
                yield LatestRow(sensor_id, reading.time_us, self.first_id + start, reading.values)

    def slices(self) -> Iterator[RowSlice]:
        """Yield all rows by request, for when they must be told apart."""
        for single in self.singles:
            if row := single.encode(self.first_id):
                yield RowSlice(single.start, row, 1, is_atomic=False)
        for batch in self.batches:
            yield from batch.slices(self.first_id)

    def by_day(self) -> Mapping[int, Sequence[Rows]]:
        """Return all rows by day (UTC), in days since 1970."""
        days: dict[int, list[Rows]] = defaultdict(list)
        for single in self.singles:
            if row := single.encode(self.first_id):
                days[single.reading.time_us // DAY_US].append(row)
        for batch in self.batches:
            rows = batch.encode(self.first_id)
            starts = pc.floor_temporal(rows["time"], unit="day")
            for start in pc.unique(starts):
                days[start.value // DAY_US].append(rows.filter(pc.equal(starts, start)))
        return days

    def without(self, positions: Collection[int]) -> tuple[list[LatestRow], pa.RecordBatch | None]:
        """Return what ``single_rows`` and ``ordered`` do, less the rows at these positions."""
        ids = {self.first_id + position for position in positions}
        singles = [row for row in self.single_rows() if row.id not in ids]
        rows = self.ordered()
        if rows is not None:
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(ids, pa.int64()))))
        return singles, rows

    def unnamed(self, no_sensor_id: str, no_source_id: str) -> dict[int, str | None]:
        """Return the rows that can't be written, by position, and why: no id is left for their sensor or sender. None:
        only another row of a batch that is all or nothing lacks one.
        """
        unnamed: dict[int, str | None] = {
            start: no_source_id if source_id is None else no_sensor_id
            for start, _, sensor_id, source_id in self.singles
            if sensor_id is None or source_id is None
        }
        for batch in self.batches:
            unnamed |= batch.unnamed(no_sensor_id, no_source_id)
        return unnamed

    def sensor_count(self) -> int:
        """Return the number of distinct sensors."""
        of_singles = pa.array([each.sensor_id for each in self.singles], pa.int32())
        ids = pa.concat_arrays([of_singles, *(each.sensor_ids for each in self.batches)])
        return int(pc.count_distinct(ids).as_py())

    def day_count(self) -> int:
        """Return the number of days (UTC), each a chunk of the table, between the first reading and the last."""
        extremes = [content.time_range_us() for content in self.contents]
        return max(last for _, last in extremes) // DAY_US - min(first for first, _ in extremes) // DAY_US + 1


def payload_of(rows: Iterable[Rows]) -> list[bytes]:
    """Return a whole COPY of rows, in pieces of any size."""
    packed: list[bytes] = []
    columns: list[pa.RecordBatch] = []
    for each in rows:
        if isinstance(each, bytes):
            packed.append(each)
        elif each.num_rows:
            columns.append(each)
    return encode_copy(packed, in_order(columns) if columns else None)
