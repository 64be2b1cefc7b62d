"""NDJSON as one program writes it: each line has the first one's columns, in its order and with its spaces.

Pure. One RE2 pass over the body tells whether it is so, to the byte except for the names: 0.2 µs a row. Commas made
colons and braces left out (0.08), what remains is a CSV of names and values in turn, which Arrow reads in 0.3; names of
the right lengths are compared in 0.01. Spelled out in the pattern they took up to 0.17 more in some runs.

What the pattern doesn't cover is left to the other ways: columns that are not known, escapes, commas and braces in
texts, and spaces in them where there are some after commas and colons. A body of several shapes is mostly seen to be
one by its sample; one that deviates elsewhere has lost 0.13 ms for compiling the pattern, and the passes until there.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.csv
from pydantic_core import from_json

from app.ingest.decode.columns import COLUMNS
from app.ingest.decode.utf8 import has
from app.schema import METRIC_TYPES

_NAME = '"[a-z_]+"'
_INTEGER = "-?(?:0|[1-9][0-9]*)"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_TEXT = r'"[^"\\,{}\x00-\x1f]*"'
_TEXT_WITHOUT_SPACES = _TEXT.replace(",", ", ")
_AS_CSV = bytes.maketrans(b",", b":")
"""Colons separate, and not commas: quoted they are as good, and times and MAC addresses are full of them."""
_SAMPLE_BYTES = 4_096


def columns_of_one_shape(body: bytes, *, max_rows: int) -> Mapping[str, pa.Array] | None:
    """All of COLUMNS, those that weren't sent full of null. None: the lines differ, are more than ``max_rows``, or the
    pattern doesn't cover them.

    The body is UTF-8; its last line may have an end. A number too large for a float may have become infinite.
    """
    lines = body[:_SAMPLE_BYTES].removesuffix(b"\n").split(b"\n")
    if len(lines) > 1 and len(body) > _SAMPLE_BYTES:
        lines.pop()  # it may have been cut
    try:
        sample = [from_json(line) for line in lines]
    except ValueError:
        return None
    if not all(isinstance(reading, dict) for reading in sample):
        return None
    names = list(sample[0])
    if not {"sensor_id"} <= {*names} <= {*COLUMNS} or any(list(reading) != names for reading in sample):
        return None
    shortest_bytes = len('"a":0,') * len(names) + len("{}")
    # To count them takes 0.06 µs a row, and can mostly be spared.
    if len(body) > max_rows * shortest_bytes and body.count(b"\n") > max_rows:
        return None
    times = {type(reading.get("time")) for reading in sample}
    time_type = pa.string() if str in times else pa.float64() if float in times else pa.int64()
    types = {"sensor_id": pa.string(), "time": time_type, **METRIC_TYPES}
    space = " " if b'": ' in lines[0] else ""
    values = {
        pa.int64(): _INTEGER,
        pa.float64(): _NUMBER,
        pa.string(): _TEXT_WITHOUT_SPACES if space else _TEXT,
    }
    line = f",{space}".join(f"{_NAME}:{space}(?:{values[types[name]]}|null)" for name in names)
    if not has(body, rf"\A(?:\{{{line}\}}(?:\n|\z))*\z"):
        return None
    return _read(body.translate(_AS_CSV, b"{}" + space.encode()), names, types)


def _read(pairs: bytes, names: Sequence[str], types: Mapping[str, pa.DataType]) -> Mapping[str, pa.Array] | None:
    """Parse lines like "sensor_id":"a":"time":1. None if they have other names, or an integer past 64 bits."""
    said = {f"name of {name}": pa.scalar(name.encode(), pa.binary(len(name))) for name in names}
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(pairs),
            # One block, since a block must end with a line; one thread, since bodies are decoded side by side.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=len(pairs) + 1,
                column_names=[column for pair in zip(said, names, strict=True) for column in pair],
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=":"),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=[*COLUMNS, *said],
                include_missing_columns=True,
                column_types={**types, **{column: name.type for column, name in said.items()}},
                null_values=["null"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowException:
        return None
    (rows,) = table.to_batches()
    if not all(rows.column(column).equals(pa.repeat(name, len(rows))) for column, name in said.items()):
        return None
    return {name: rows.column(name) for name in COLUMNS}
