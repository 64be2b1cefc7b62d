"""The common form of all bulk formats: the columns that were sent, in; a Batch and the faults of the rest, out.

Pure, and it does not know which format the columns came in. A good row costs no Python object: pyarrow.compute looks at
whole columns, and only the first faults are looked at one by one. Every row that was sent is either in the batch, in
its order, or counted as rejected.

NaN in a metric is no value, as null is, in every format: NumPy, pandas and JavaScript have no other way to say that. So
is a text in NO_VALUE. An infinite number is a fault.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import BodyTooLarge, MalformedBody, TooManyRows
from app.ingest.batch import BATCH_SCHEMA, Batch, Sender
from app.ingest.decode.dialect import CsvDialect
from app.ingest.decode.reading import MAX_SENSOR_ID_LENGTH
from app.ingest.decode.timestamps import (
    EARLIEST_US,
    OUTSIDE_ALL_YEARS,
    Precision,
    TimeWindow,
    parse_time_us,
    parse_times_us,
)
from app.schema import METRIC_TYPES, METRICS

COLUMNS = ("sensor_id", "time", *METRICS)
"""All that are known, in the order in which a row's first fault is looked for."""

MAX_COLUMNS = 1_000
"""Columns of a table, unknown ones included."""
MAX_UNKNOWN_COLUMNS = 100
MAX_NAMED_COLUMNS = 30
MAX_SHOWN_LENGTH = 100

NO_VALUE = frozenset(
    [
        *("", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None"),
        *("NaN", "nan", "NAN", "-nan", "-NaN"),
    ]
)
"""How a metric that is not there is written as text, by R, NumPy, pandas, SQL, spreadsheets, loggers and C."""

NO_SENSOR_ID = "sensor_id is missing"
NO_TIME = "time is missing"
NO_METRIC = f"one of {', '.join(METRICS)} should be there"
NO_NUMBER = "{} should be a number"
NOT_FINITE = "{} should be a finite number"


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one reading is not taken. ``row`` counts the readings sent, from 1."""

    row: int
    column: str | None
    """None: the fault is not of one column."""
    reason: str
    value: object
    """What was sent, as far as JSON shows it."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A body's readings. ``errors`` describes the first of the ``rejected`` ones, in their order."""

    batch: Batch
    rejected: int
    errors: Sequence[RowError]
    unknown_columns: Sequence[str]
    rows: pa.Array
    """The positions, from 1, of the batch's rows among the readings sent."""
    rejected_rows: pa.Array
    """The positions, from 1, of the readings that are not in the batch."""
    hints: Sequence[str] = ()
    """What the sender should know about readings that were taken, in sentences."""
    is_backfill_wanted: bool = False
    """Whether some were rejected only for being older than a request without backfill may bring."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """The rules for a request's readings, and the values that they are given."""

    source: Sender
    precision: Precision
    window: TimeWindow
    now_us: int
    """The time of a reading that brings none, microseconds since 1970 UTC."""
    max_rows: int
    max_chunks: int
    """Days (UTC) that the readings of one request may lie in. The newest are kept."""
    max_errors: int
    """Bad rows that are described; all are counted."""
    max_columns: int = MAX_COLUMNS
    """Columns of an Arrow stream, unknown ones included."""
    max_inflated_bytes: int = 1 << 30
    """What an Arrow stream or Parquet may take together with what comes out of it when it is inflated."""
    is_time_required: bool = False
    """Whether a reading without a time is refused."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """What a field of JSON is called here, by the name that it has in the body, where that differs."""
    dialect: CsvDialect = field(default_factory=CsvDialect)
    """How a CSV is written."""
    is_sensor_required: bool = True
    """Whether a table without sensor_id is refused."""
    is_backfill: bool = False
    """Whether the readings may be long past: then none may get its time from the clock where a column looks like one of
    times."""
    only_rows: pa.Array | None = None
    """The rows, from 1, that are wanted: the others are neither taken nor rejected. None: all."""


@dataclass(frozen=True, slots=True)
class ParsedColumns:
    """A body in columns, as far as its format can check them.

    ``columns`` has those of COLUMNS that were parsed, each of ``rows`` values: ``sensor_id`` as text or as a dictionary
    of text, ``time`` as ``parse_times_us`` takes it, the metrics as float64. Where a format has found a fault itself
    the value is null and ``faults`` has the reason, by column (None: of the row) and row (from 0).
    """

    rows: int
    columns: Mapping[str, pa.Array]
    unknown_columns: Sequence[str] = ()
    faults: Mapping[str | None, Mapping[int, str]] = field(default_factory=dict)
    value: Callable[[int, str | None], object] | None = None
    """What was sent in a row (from 0) and column, where ``columns`` doesn't have it any more."""

    def value_at(self, row: int, column: str | None) -> object:
        """Return the value that was sent at a row and column, whatever its type."""
        if self.value is not None:
            return self.value(row, column)
        return scalar_value(self.columns[column][row]) if column is not None and column in self.columns else None


@dataclass(frozen=True, slots=True)
class Opened:
    """A body that has been looked at but not inflated."""

    inflated_bytes: int
    """What ``read`` takes beside the body itself."""
    read: Callable[[], ParsedColumns]


def scalar_value(scalar: pa.Scalar) -> object:
    """Return an Arrow value as a Python object. A time becomes text, or its number where Python has no such date."""
    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):  # nanoseconds, the year 20000, an unknown zone
        value = scalar.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def require_few_rows(rows: int, options: DecodeOptions) -> None:
    """Raise TooManyRows if a body has more readings than it may."""
    if rows > options.max_rows:
        raise TooManyRows(rows, options.max_rows)


def require_few_columns(count: int, max_columns: int = MAX_COLUMNS) -> None:
    """Raise MalformedBody if a table has too many columns."""
    if count > max_columns:
        raise MalformedBody(f"The body has {count:,} columns and may have {max_columns:,}: leave out unknown columns.")


def require_small(inflated_bytes: int, options: DecodeOptions) -> None:
    """Raise BodyTooLarge if a body would take too much once inflated."""
    if inflated_bytes > options.max_inflated_bytes:
        raise BodyTooLarge(options.max_inflated_bytes, inflated=True)


def require_columns(names: Sequence[str], options: DecodeOptions) -> Sequence[str]:
    """Those of a table's column names that are not known.

    Raises:
        MalformedBody: ``sensor_id`` is not among them, though required, or a name comes twice; the message says what to
            do.
    """
    if twice := [name for name, times in Counter(names).items() if name and times > 1]:
        raise MalformedBody(f"The column {format_names(twice[:1])} comes twice: give every column a name of its own.")
    if "sensor_id" not in names and options.is_sensor_required:
        raise MalformedBody(
            f"There is no column sensor_id. The columns sent: {format_names(names)}. Known: {', '.join(COLUMNS)}."
        )
    return unknown_among(names)


def unknown_among(names: Sequence[str]) -> Sequence[str]:
    """Return the first MAX_UNKNOWN_COLUMNS distinct names that are no column's, cut to the length that is shown."""
    unknown = dict.fromkeys(name[:MAX_SHOWN_LENGTH] for name in names if name not in COLUMNS)
    return list(unknown)[:MAX_UNKNOWN_COLUMNS]


_TIME_LIKE = re.compile(
    "(unix|epoch|event|local|utc|gmt|device|sensor|log|reading|sample|sampling|measurement|observation)?"
    "(time|timestamp|ts|date|datetime|epoch)"
    "(utc|gmt|local|iso|iso8601|unix|epoch|time|hour|recorded|s|sec|seconds|ms|millis|us|ns|tz)?"
    "|(recorded|measured|observed|sampled|created|received|sent|logged)(at|on|time|date)|utc|dt"
)


def columns_like_time(names: Sequence[str]) -> Sequence[str]:
    """Return the names that look like a column of times, without ``time`` itself: timestamp, ts, Time, _time, …

    Whoever sends one of these beside no ``time`` means it, and would have every reading stored as of its arrival.
    """
    return [name for name in names if name != "time" and _TIME_LIKE.fullmatch(re.sub(r"[\W_]", "", name).lower())]


def format_names(names: Sequence[str]) -> str:
    """Names of columns for a message, the first MAX_NAMED_COLUMNS, with … where there are more."""
    said = [repr(name[:MAX_SHOWN_LENGTH]) for name in names[:MAX_NAMED_COLUMNS]]
    return ", ".join(said + ["…"] * (len(names) > MAX_NAMED_COLUMNS)) or "none"


@dataclass(frozen=True, slots=True)
class _RowErrors:
    """Rows that are not taken, and how to say why."""

    column: str | None
    rows: pa.Array
    """Booleans without null, one a row."""
    reason: Callable[[int], str]


def validate(parsed: ParsedColumns, options: DecodeOptions) -> Decoded:
    """Return the good rows as a batch, and the faults of the others.

    Raises:
        TooManyRows: there are more than ``options`` allow.
    """
    require_few_rows(parsed.rows, options)
    row_errors: list[_RowErrors] = []
    _add_parse_errors(parsed, None, row_errors)

    sensors = _distinct(parsed.columns.get("sensor_id", pa.nulls(parsed.rows, pa.string())))
    _add_parse_errors(parsed, "sensor_id", row_errors)
    _validate_names(sensors, row_errors)

    times = parsed.columns.get("time", pa.nulls(parsed.rows))
    moments = parse_times_us(times, options.precision)
    if moments is None:
        raise MalformedBody(f"The column time should have times or numbers, and not {times.type}.")
    _add_parse_errors(parsed, "time", row_errors)
    is_backfill_wanted = _validate_times(times, moments, options, row_errors)
    hints: Sequence[str] = ()
    if times.null_count:
        hints = _validate_missing_times(parsed, times, options, row_errors)
    if moments.null_count:
        moments = moments.fill_null(options.now_us)

    metrics = []
    for name, arrow_type in METRIC_TYPES.items():
        values = parsed.columns.get(name, pa.nulls(parsed.rows, arrow_type))
        _add_parse_errors(parsed, name, row_errors)
        if pc.all(pc.is_finite(values)).as_py() is False:
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, arrow_type), values)
            not_finite = pc.invert(pc.is_finite(values)).fill_null(False)
            _add_errors(row_errors, name, not_finite, _always(NOT_FINITE.format(name)))
        metrics.append(values)
    if all(values.null_count for values in metrics):
        _add_errors(row_errors, None, reduce(pc.and_, [pc.is_null(values) for values in metrics]), _always(NO_METRIC))

    rows = pa.arange(1, parsed.rows + 1)
    unwanted = None if options.only_rows is None else pc.invert(pc.is_in(rows, value_set=options.only_rows))
    _validate_days(moments, unwanted, options, row_errors)
    names = sensors.dictionary
    columns = [moments.cast(BATCH_SCHEMA.field("time").type), sensors.indices, *metrics]
    errors, rejected_rows = list[RowError](), rows[:0]
    if row_errors or unwanted is not None:
        refused = reduce(pc.or_, [each.rows for each in row_errors], pa.repeat(False, parsed.rows))
        taken = pc.invert(refused)
        if unwanted is not None:
            refused, taken = pc.and_not(refused, unwanted), pc.and_not(taken, unwanted)
        errors = _errors(parsed, refused, row_errors, options.max_errors)
        rejected_rows, rows = rows.filter(refused), rows.filter(taken)
        columns = [column.filter(taken) for column in columns]
        # Names that are left without a row go, too.
        positions = columns[1].dictionary_encode()
        names = names.take(positions.dictionary)
        columns[1] = positions.indices
    return Decoded(
        batch=Batch(names, pa.RecordBatch.from_arrays(columns, schema=BATCH_SCHEMA), options.source),
        rejected=len(rejected_rows),
        errors=errors,
        unknown_columns=parsed.unknown_columns,
        rows=rows,
        rejected_rows=rejected_rows,
        hints=hints,
        is_backfill_wanted=is_backfill_wanted,
    )


def _add_errors(row_errors: list[_RowErrors], column: str | None, rows: pa.Array, reason: Callable[[int], str]) -> None:
    if rows.true_count:
        row_errors.append(_RowErrors(column, rows, reason))


def _always(reason: str) -> Callable[[int], str]:
    return lambda _row: reason


def _add_parse_errors(parsed: ParsedColumns, column: str | None, row_errors: list[_RowErrors]) -> None:
    if reasons := parsed.faults.get(column):
        rows = pa.array([row in reasons for row in range(parsed.rows)], pa.bool_())
        row_errors.append(_RowErrors(column, rows, reasons.__getitem__))


def _distinct(names: pa.Array) -> pa.DictionaryArray:
    """Encode names by a dictionary of text without null or repetition, in order of appearance."""
    if not pa.types.is_dictionary(names.type):
        return names.dictionary_encode()
    own = names.dictionary.dictionary_encode()
    used = own.indices.take(names.indices).dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices, own.dictionary.take(used.dictionary))


def _validate_names(sensors: pa.DictionaryArray, row_errors: list[_RowErrors]) -> None:
    """In the order in which the single reading's parser finds them. Whitespace is what it is to ``str.strip``."""
    names = sensors.dictionary
    faults = {
        NO_SENSOR_ID: pc.equal(pc.binary_length(names), 0),
        f"sensor_id should have at most {MAX_SENSOR_ID_LENGTH} characters": pc.greater(
            pc.utf8_length(names), MAX_SENSOR_ID_LENGTH
        ),
        "sensor_id should have no NUL character": pc.match_substring(names, "\0"),
        "sensor_id should not be blank": pc.equal(pc.binary_length(pc.utf8_trim_whitespace(names)), 0),
    }
    for reason, of_names in faults.items():
        if of_names.true_count:
            _add_errors(row_errors, "sensor_id", of_names.take(sensors.indices).fill_null(False), _always(reason))
    if sensors.indices.null_count:
        _add_errors(row_errors, "sensor_id", pc.is_null(sensors.indices), _always(NO_SENSOR_ID))


def _validate_times(times: pa.Array, moments: pa.Array, options: DecodeOptions, row_errors: list[_RowErrors]) -> bool:
    """Reject rows by their times. Return whether some are rejected only because this is no backfill."""

    def unreadable(row: int) -> str:
        value = scalar_value(times[row])
        if isinstance(value, int | float | str) and not pa.types.is_temporal(times.type):
            try:
                parse_time_us(value, precision=options.precision)
            except ValueError as error:
                return str(error)
        return OUTSIDE_ALL_YEARS

    if moments.null_count > times.null_count:
        _add_errors(row_errors, "time", pc.and_(pc.is_null(moments), pc.is_valid(times)), unreadable)
    extremes = pc.min_max(moments)
    bounds = [extremes[end].as_py() for end in ("min", "max")]
    if any(bound is not None and options.window.fault(bound, now_us=options.now_us) for bound in bounds):
        earliest, latest = options.window.bounds_us(options.now_us)
        outside = pc.or_(
            pc.less(moments, -(2**63) if earliest is None else earliest),
            pc.greater(moments, 2**63 - 1 if latest is None else latest),
        ).fill_null(False)
        _add_errors(
            row_errors,
            "time",
            outside,
            lambda row: options.window.fault(moments[row].as_py(), now_us=options.now_us) or OUTSIDE_ALL_YEARS,
        )
        earliest_of_backfill, _ = options.window.for_backfill().bounds_us(options.now_us)
        if earliest is not None and earliest_of_backfill != earliest:
            too_old = pc.and_(
                pc.less(moments, earliest), pc.greater_equal(moments, earliest_of_backfill or EARLIEST_US)
            )
            return bool(pc.any(too_old).as_py())
    return False


def _validate_missing_times(
    parsed: ParsedColumns, times: pa.Array, options: DecodeOptions, row_errors: list[_RowErrors]
) -> Sequence[str]:
    """Reject rows without a time, or return hints for the sender where such rows are taken.

    Raises:
        MalformedBody: no row may be taken, since a column that looks like one of times has another name.
    """
    like_time = columns_like_time(parsed.unknown_columns)
    if options.is_time_required or (options.is_backfill and like_time):
        if like_time and times.null_count == parsed.rows and not parsed.faults.get("time"):
            raise MalformedBody(
                f"There is no column time. The column {format_names(like_time[:1])} looks like it: rename it to time."
            )
        reason = f"{NO_TIME}: a column {format_names(like_time[:1])} is not read as one" if like_time else NO_TIME
        _add_errors(row_errors, "time", pc.is_null(times), _always(reason))
        return ()
    return [
        f"The column {format_names([name])} looks like a time but is ignored: rename it to time. "
        "Readings without a time got their time of arrival."
        for name in like_time[:1]
    ]


_DAY_US = 86_400_000_000


def _validate_days(
    moments: pa.Array, unwanted: pa.Array | None, options: DecodeOptions, row_errors: list[_RowErrors]
) -> None:
    """Reject the rows of all but the newest days: old readings can wait for an import, new ones can't."""
    passed_over = [each.rows for each in row_errors] + [unwanted] * (unwanted is not None)
    if passed_over:
        refused = reduce(pc.or_, passed_over)
        moments = pc.if_else(refused, pa.scalar(None, pa.int64()), moments)
    extremes = pc.min_max(moments)
    first, last = extremes["min"].as_py(), extremes["max"].as_py()
    if first is None or last // _DAY_US - first // _DAY_US < options.max_chunks:
        return
    days = moments.cast(pa.timestamp("us")).cast(pa.date32()).cast(pa.int32())
    distinct = sorted(day for day in days.unique().to_pylist() if day is not None)
    if len(distinct) <= options.max_chunks:
        return
    beyond = pc.less(days, distinct[-options.max_chunks]).fill_null(False)
    reason = (
        f"a request may span {options.max_chunks} distinct days (UTC), and this one spans {len(distinct)}: the newest "
        "days are stored; send the others in requests of fewer days, or use python -m app import"
    )
    _add_errors(row_errors, "time", beyond, _always(reason))


def _errors(
    parsed: ParsedColumns, refused: pa.Array, row_errors: Sequence[_RowErrors], max_errors: int
) -> list[RowError]:
    errors = []
    for row in pc.indices_nonzero(refused)[:max_errors].to_pylist():
        each = next(each for each in row_errors if each.rows[row].as_py())
        is_shown = each.column is not None or row in parsed.faults.get(None, ())
        value = parsed.value_at(row, each.column) if is_shown else None
        errors.append(RowError(row + 1, each.column, each.reason(row), truncated_for_message(value)))
    return errors


def truncated_for_message(value: object) -> object:
    """Return what was sent, as far as JSON shows it, and in few characters."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)[:MAX_SHOWN_LENGTH]
    if isinstance(value, str):
        return value[:MAX_SHOWN_LENGTH]
    return json.dumps(value, ensure_ascii=False)[:MAX_SHOWN_LENGTH]
