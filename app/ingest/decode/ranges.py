"""Rows as ranges: 3,17-402. A device that was offline has 241 rejected rows in three of them.

Pure.
"""

import pyarrow as pa
import pyarrow.compute as pc


def as_ranges(rows: pa.Array) -> str:
    """Write row numbers (int64, ascending) as ranges, both ends included. None are ""."""
    if not len(rows):
        return ""
    ends = pc.not_equal(pc.add(rows[:-1], 1), rows[1:])
    last = rows.filter(pa.concat_arrays([ends, pa.array([True])])).to_pylist()
    first = rows.filter(pa.concat_arrays([pa.array([True]), ends])).to_pylist()
    return ",".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(first, last, strict=True))


def rows_of_ranges(ranges: str) -> pa.Array:
    """Read what ``as_ranges`` has written."""
    spans = [span.partition("-") for span in ranges.split(",") if span]
    rows = [pa.arange(int(start), int(end or start) + 1) for start, _, end in spans]
    return pa.concat_arrays(rows) if rows else pa.array([], pa.int64())
