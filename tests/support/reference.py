"""The bulk decoders as they would be without a need for speed: plain loops over plain values, from the rules.

It shares no line with ``app.ingest.decode``, whose public types alone it knows.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from app.ingest.decode.readings import Format
from app.ingest.decode.timestamps import Precision, TimeWindow

METRICS = ("temperature", "humidity", "pressure")
KNOWN = ("sensor_id", "time", *METRICS)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
A_DAY_US = 86_400_000_000
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
NO_VALUE = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None", "NaN", "nan", "NAN", "-nan", "-NaN")
WHITESPACE = " \t\r\n"

Row = tuple[str, int, float | None, float | None, float | None]


class MalformedError(Exception):
    """The body is refused as a whole."""


class FaultError(Exception):
    """A row is refused, for a column (None: for itself)."""

    def __init__(self, column: str | None) -> None:
        self.column = column


@dataclass
class Expected:
    """The expected result: the good rows in order, the place of every fault, and the names of unknown columns."""

    rows: list[Row] = field(default_factory=list)
    faults: list[tuple[int, str | None]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """The rules for a request's readings."""

    precision: Precision
    window: TimeWindow
    now_us: int
    max_chunks: int


class NoRow:
    """The place of a row that could not be read."""


def decode(body: bytes, form: Format, rules: Rules) -> Expected:
    """Return what a text body should become, or raise MalformedError if it should be refused."""
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise MalformedError("UTF-16")
    if body[:3] == b"\xef\xbb\xbf":
        body = body[3:]
    if form is Format.CSV:
        header, records = csv_of(body)
        unknown = [name for name in header if name not in KNOWN]
        return judge(records, unknown, rules, csv=True)
    if form is Format.NDJSON:
        rows = [row_of_line(line) for line in body.split(b"\n") if line.strip(WHITESPACE.encode())]
        return judge(rows, unknown_of(rows), rules)
    return decode_document(body, rules)


def decode_document(body: bytes, rules: Rules) -> Expected:
    try:
        document = load(body)
    except ValueError as error:
        raise MalformedError(str(error)) from error
    if isinstance(document, list):
        return judge(document, unknown_of(document), rules)
    if not isinstance(document, dict):
        raise MalformedError("neither an array nor an object")
    if not any(isinstance(document.get(name), list) for name in KNOWN):
        return judge([document], unknown_of([document]), rules)
    columns = {name: document[name] for name in KNOWN if document.get(name) is not None}
    if "sensor_id" not in columns or not all(isinstance(values, list) for values in columns.values()):
        raise MalformedError("columns that are none")
    if len({len(values) for values in columns.values()}) > 1:
        raise MalformedError("columns of different lengths")
    rows = [{name: values[place] for name, values in columns.items()} for place in range(len(columns["sensor_id"]))]
    return judge(rows, unknown_of([document]), rules)


def load(text: bytes) -> object:
    """Parse RFC 8259 and NaN, Infinity and -Infinity, and raise ValueError for all else."""
    try:
        document = json.loads(text.decode())
        json.dumps(document, ensure_ascii=False).encode()  # no lone surrogate in it
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return document


def row_of_line(line: bytes) -> object:
    try:
        return load(line)
    except ValueError:
        return NoRow()


def unknown_of(rows: list[object]) -> list[str]:
    return list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row if name not in KNOWN))


def judge(rows: Sequence[object], unknown: list[str], rules: Rules, *, csv: bool = False) -> Expected:
    """Check the rows one by one, and then the days that they lie in."""
    expected = Expected(unknown=list(dict.fromkeys(unknown)))
    good: list[tuple[int, Row]] = []
    for number, row in enumerate(rows, 1):
        try:
            good.append((number, reading(row, rules, csv=csv)))
        except FaultError as fault:
            expected.faults.append((number, fault.column))
    days = sorted({row[1] // 86_400_000_000 for _, row in good})
    kept = set(days[max(0, len(days) - rules.max_chunks) :])
    for number, row in good:
        if row[1] // 86_400_000_000 in kept:
            expected.rows.append(row)
        else:
            expected.faults.append((number, "time"))
    expected.faults.sort(key=lambda fault: fault[0])
    return expected


def reading(row: object, rules: Rules, *, csv: bool) -> Row:
    if not isinstance(row, dict):
        raise FaultError(None)
    name = row.get("sensor_id")
    if not isinstance(name, str) or not name.strip() or len(name) > 255 or "\0" in name:
        raise FaultError("sensor_id")
    sent = row.get("time")
    if csv and sent is not None and not sent.strip(" \t"):
        sent = None
    time_us = rules.now_us if sent is None else moment(sent, rules)
    metrics = [metric(row.get(each), each) for each in METRICS]
    if metrics == [None, None, None]:
        raise FaultError(None)
    return (name, time_us, *metrics)  # type: ignore[return-value]


def metric(value: object, name: str) -> float | None:
    if isinstance(value, str) and value.strip() in NO_VALUE:
        return None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise FaultError(name)
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        raise FaultError(name)
    try:
        number = float(value)
    except OverflowError:
        raise FaultError(name) from None
    if not math.isfinite(number):
        raise FaultError(name)
    return number


def moment(sent: object, rules: Rules) -> int:
    try:
        time_us = microseconds(sent, rules.precision)
    except ValueError:
        raise FaultError("time") from None
    if (
        not EPOCH + timedelta(days=-25_567)
        <= EPOCH + timedelta(microseconds=time_us)
        < datetime(2262, 1, 1, tzinfo=UTC)
    ):
        raise FaultError("time")
    if rules.window.past_us is not None and rules.now_us - time_us > rules.window.past_us:
        raise FaultError("time")
    if rules.window.future_us is not None and time_us - rules.now_us > rules.window.future_us:
        raise FaultError("time")
    return time_us


def microseconds(sent: object, precision: Precision) -> int:
    if isinstance(sent, datetime):
        return ((sent if sent.tzinfo else sent.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
    if isinstance(sent, date):
        return (sent - EPOCH.date()) // MICROSECOND
    if isinstance(sent, bool) or not isinstance(sent, int | float | str):
        raise ValueError("no time")
    if isinstance(sent, str):
        text = sent.strip()
        if len(text) > 64:
            raise ValueError("long")
        if not NUMBER.fullmatch(text):
            return microseconds_of_iso(text)
        sent = int(text) if WHOLE.fullmatch(text) else float(text)
    return microseconds_of_number(sent, precision)


def microseconds_of_iso(text: str) -> int:
    """Parse what datetime parses, and also z, 24:00 at a day's end, and second 60 at a UTC day's end."""
    text = text[:-1] + "Z" if text.endswith("z") else text
    with suppress(ValueError):
        return microseconds(datetime.fromisoformat(text), Precision.S)
    for clock in (separator + hour for hour in ("24:00:00", "24:00", "240000", "2400", "24") for separator in "Tt "):
        date, found, zone = text.partition(clock)
        if found and (not zone or zone[0] in "Z+-"):
            return microseconds(datetime.fromisoformat(f"{date}T00:00{zone}"), Precision.S) + A_DAY_US
    for second in (":60", "5960"):
        minute, found, rest = text.partition(second)
        if found:
            last = microseconds(datetime.fromisoformat(f"{minute}{second[:-2]}59{rest}"), Precision.S) + 1_000_000
            if last % A_DAY_US < 1_000_000:
                return last
    raise ValueError("no ISO 8601")


def microseconds_of_number(sent: float, precision: Precision) -> int:
    size = abs(sent)
    if not size < 10**19:  # nor is NaN
        raise ValueError("beyond any unit")
    unit = precision.value
    if unit == "auto":
        unit = "s" if size < 5 * 10**9 else "ms" if size < 5 * 10**12 else "us" if size < 5 * 10**15 else "ns"
    if isinstance(sent, int):
        found = {"s": sent * 10**6, "ms": sent * 10**3, "us": sent, "ns": sent // 1_000}[unit]
    else:
        found = {"s": round(sent * 1e6), "ms": round(sent * 1e3), "us": round(sent), "ns": round(sent * 0.001)}[unit]
    if abs(found) > 10**16:
        raise ValueError("beyond all years")
    if precision is Precision.AUTO and EPOCH + timedelta(microseconds=found) < datetime(2000, 1, 1, tzinfo=UTC):
        raise ValueError("too early for a number whose unit was guessed")
    return found


def csv_of(body: bytes) -> tuple[list[str], list[object]]:
    """Return the header and the rows, each a dict or NoRow."""
    records = csv_records(body.decode(errors="surrogateescape"))
    header = next(records, None)
    if header is None:
        raise MalformedError("no header")
    header[:] = [name.strip() for name in header]
    if not is_text("".join(header)):
        raise MalformedError("not UTF-8")
    named = [name for name in header if name]
    if len(set(named)) < len(named) or "sensor_id" not in named:
        raise MalformedError("a name twice, or no sensor_id")
    rows: list[object] = []
    for record in records:
        if record is None or len(record) != len(header) or not is_text("".join(record)):
            rows.append(NoRow())
        else:
            rows.append(dict(zip(header, record, strict=True)))
    return header, rows


def is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def csv_records(text: str) -> Iterator[list[str] | None]:
    """Yield the records of RFC 4180, and None for what is no record. Continue after that at the next line.

    The first is the header. No record of several lines is one that has not its number of fields, or a line break in a
    time or a metric.
    """
    header: list[str] = []
    at = 0
    while at < len(text):
        start_of_record = at
        fields: list[str] = []
        quoted = False
        while True:
            content = ""
            if text[at : at + 1] == '"':
                quoted = True
                at += 1
                while at < len(text) and (text[at] != '"' or text[at : at + 2] == '""'):
                    content += text[at]
                    at += 2 if text[at] == '"' else 1
                at += 1
                closed = at <= len(text)
            else:
                while at < len(text) and text[at] not in '",\r\n':
                    content += text[at]
                    at += 1
                closed = True
            if not closed or (at < len(text) and text[at] not in ",\r\n"):
                at = end_of_first_line(text, start_of_record)
                yield None
                break
            fields.append(content)
            if at < len(text) and text[at] == ",":
                at += 1
                continue
            at += 2 if text[at : at + 2] == "\r\n" else 1
            if header and end_of_first_line(text, start_of_record) < at and is_stray(fields, header):
                at = end_of_first_line(text, start_of_record)
                yield None
                break
            if len(fields) > 1 or quoted or content.strip(" \t"):
                yield fields
                header = header or fields
            break


def end_of_first_line(text: str, at: int) -> int:
    while at < len(text) and text[at] not in "\r\n":
        at += 1
    return at + (2 if text[at : at + 2] == "\r\n" else 1)


def is_stray(fields: list[str], header: list[str]) -> bool:
    """Return whether a record of several lines comes from a stray quote."""
    return len(fields) != len(header) or any(
        name in KNOWN[1:] and ("\r" in field or "\n" in field) for name, field in zip(header, fields, strict=True)
    )
