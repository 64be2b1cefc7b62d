"""The rejected rows of a file, as a CSV beside it: each row as in the file, with its number and the reason.

Rows can be corrected there, and the CSV imported with the same options as the file.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pyarrow.ipc

from app.errors import ConfigurationError
from app.imports.files import Block, InputFile
from app.ingest.decode.columns import RowError, scalar_value
from app.ingest.decode.csvs import records
from app.ingest.decode.jsons import read_values
from app.ingest.decode.readings import Format

OWN_COLUMNS = ("rejected_row", "rejected_reason", "rejected_text")
"""The columns added to those of the file. The text is that of a row that can't be shown in columns."""


def report_path(path: Path) -> Path:
    """Return the path of the CSV of a file's rejected rows."""
    return path.with_name(f"{path.name}.rejected.csv")


class RejectsReport:
    """The rejected rows as a CSV, made when there is one.

    Args:
        path: the CSV.
        file: whose rows they are.
    """

    def __init__(self, path: Path, file: InputFile) -> None:
        self._path = path
        self._file = file
        self._names = [name for name in file.names if name not in OWN_COLUMNS]
        self._output: TextIO | None = None

    def __enter__(self) -> "RejectsReport":
        with self._writing():
            self._path.unlink(missing_ok=True)  # of an earlier import
        return self

    def __exit__(self, *_: object) -> None:
        if self._output is not None:
            self._output.close()

    def write(self, faults: Sequence[RowError], block: Block, rows_before: int) -> None:
        """Add rejected rows of a block that begins after ``rows_before`` others."""
        if not faults:
            return
        originals = _originals(block, self._file, {fault.row for fault in faults})
        with self._writing():
            is_first = self._output is None
            output = self._output = self._output or self._path.open("w", newline="", encoding="utf-8")
            writer = csv.writer(output, delimiter=self._file.dialect.separator)
            if is_first:
                writer.writerow([*self._names, *OWN_COLUMNS])
            writer.writerows(self._row(fault, originals[fault.row], rows_before) for fault in faults)

    def _row(self, fault: RowError, original: "_Original", rows_before: int) -> Sequence[object]:
        fits = isinstance(original, Mapping) and original.keys() <= {*self._names, *OWN_COLUMNS}
        fields = [_text(original.get(name)) for name in self._names] if isinstance(original, Mapping) else []
        text = "" if fits else original if isinstance(original, str) else json.dumps(original, default=str)
        return [*(fields or [""] * len(self._names)), fault.row + rows_before, fault.reason, text]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(f"Can't write {self._path}: {error.strerror}") from error


_Original = Mapping[str, object] | str
"""A row by the file's names of its columns, or its text where it has none."""


def _originals(block: Block, file: InputFile, rows: set[int]) -> dict[int, _Original]:
    """Return the given rows of a block, numbered from 1."""
    match block.format:
        case Format.CSV:
            return {row: each for row, each in enumerate(_csv_rows(block, file), 1) if row in rows}
        case Format.ARROW_STREAM | Format.PARQUET:  # a block of either is an Arrow stream
            with pyarrow.ipc.open_stream(block.body) as stream:
                columns = stream.read_all().columns
            return {
                row: {name: scalar_value(column[row - 1]) for name, column in zip(file.names, columns, strict=True)}
                for row in rows
            }
        case Format.JSON | Format.NDJSON:
            values = read_values(block.body, is_document=block.format is Format.JSON)
            originals = ((row, values[row - 1]) for row in rows)
            return {row: each if isinstance(each, dict | str) else json.dumps(each) for row, each in originals}


def _csv_rows(block: Block, file: InputFile) -> Iterator[_Original]:
    start = len(file.header)
    for fields, at, end in records(block.body, start, file.dialect, file.ours):
        if fields is None or len(fields) != len(file.names):
            yield block.body[at:end].decode(errors="replace").rstrip("\r\n")
        else:
            yield {name: each.decode(errors="replace") for name, each in zip(file.names, fields, strict=True)}


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return (
        str(value) if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value, default=str)
    )
