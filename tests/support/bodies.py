"""Bodies to decode, good and bad, in every format, as Hypothesis draws them, and the readings of a batch."""

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from app.ingest.batch import BATCH_SCHEMA
from app.ingest.decode import csvs, jsons
from app.ingest.decode.columns import Decoded, DecodeOptions
from app.ingest.decode.readings import Format, decode_readings
from app.ingest.decode.timestamps import Precision, TimeWindow
from tests.support import reference
from tests.support.reference import KNOWN, Row, Rules
from tests.support.samples import SOURCE, T0_US

ParsedColumns = Mapping[str, object]

MAX_ERRORS = 100

WINDOW = TimeWindow.of(past_days=30, future_minutes=10)
ANY_TIME = TimeWindow.of(past_days=0, future_minutes=0)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rules(
    *, precision: Precision = Precision.AUTO, window: TimeWindow = WINDOW, now_us: int = T0_US, max_chunks: int = 50
) -> Rules:
    return Rules(precision, window, now_us, max_chunks)


def decode(
    body: bytes,
    form: Format,
    held_to: Rules | None = None,
    *,
    max_rows: int = 100_000,
    is_time_required: bool = False,
    is_backfill: bool = False,
    max_inflated_bytes: int = 24 << 20,
    only_rows: pa.Array | None = None,
) -> Decoded:
    options = options_of(
        held_to,
        max_rows=max_rows,
        is_time_required=is_time_required,
        is_backfill=is_backfill,
        max_inflated_bytes=max_inflated_bytes,
        only_rows=only_rows,
    )
    return decode_readings(body, form, options)


def options_of(held_to: Rules | None = None, *, max_rows: int = 100_000, **others: Any) -> DecodeOptions:
    held_to = held_to or rules()
    return DecodeOptions(
        source=SOURCE,
        precision=held_to.precision,
        window=held_to.window,
        now_us=held_to.now_us,
        max_rows=max_rows,
        max_chunks=held_to.max_chunks,
        max_errors=MAX_ERRORS,
        **others,
    )


@contextmanager
def arrow_from(size_bytes: int, one_shape_from_bytes: int) -> Iterator[None]:
    """Use Arrow's readers for texts from one size on, and CSV's for NDJSON of one shape from another, in the block."""
    where_it_pays = jsons.ARROW_PAYS_FROM_BYTES, csvs.ARROW_PAYS_FROM_BYTES, jsons.ONE_SHAPE_PAYS_FROM_BYTES
    jsons.ARROW_PAYS_FROM_BYTES = csvs.ARROW_PAYS_FROM_BYTES = size_bytes
    jsons.ONE_SHAPE_PAYS_FROM_BYTES = one_shape_from_bytes
    try:
        yield
    finally:
        jsons.ARROW_PAYS_FROM_BYTES, csvs.ARROW_PAYS_FROM_BYTES, jsons.ONE_SHAPE_PAYS_FROM_BYTES = where_it_pays


ALWAYS, NEVER = 0, sys.maxsize
WAYS = {"of one shape": (ALWAYS, ALWAYS), "by Arrow": (ALWAYS, NEVER), "row by row": (NEVER, NEVER)}
"""From what size on a body goes through Arrow's readers, and NDJSON of one shape through that of CSV."""


def rows_of(decoded: Decoded) -> list[Row]:
    """Return the readings of a batch, after checks of the batch."""
    columns = decoded.batch.columns
    columns.validate(full=True)
    assert columns.schema.equals(BATCH_SCHEMA, check_metadata=True)
    assert [column.null_count for column in columns.columns[:2]] == [0, 0]
    time, sensor, *metrics = columns.columns
    sensors = decoded.batch.sensors.take(sensor).to_pylist()
    assert decoded.batch.sensors.to_pylist() == list(dict.fromkeys(sensors))
    assert decoded.batch.source == SOURCE
    return list(
        zip(
            sensors,
            time.cast(pa.int64()).to_pylist(),
            *(column.to_pylist() for column in metrics),
            strict=True,
        )
    )


def places(decoded: Decoded) -> list[tuple[int, str | None]]:
    return [(fault.row, fault.column) for fault in decoded.errors]


def ndjson(rows: Sequence[object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def json_array(rows: Sequence[object]) -> bytes:
    return json.dumps(rows).encode()


def json_columns(rows: Sequence[ParsedColumns]) -> bytes:
    return json.dumps({name: [row.get(name) for row in rows] for name in KNOWN}).encode()


def csv(rows: Sequence[ParsedColumns], names: Sequence[str] = KNOWN) -> bytes:
    def field(value: object) -> str:
        text = "" if value is None else value if isinstance(value, str) else repr(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set('",\r\n') else text

    lines = [names, *([field(row.get(name)) for name in names] for row in rows)]
    return "".join(",".join(line) + "\n" for line in lines).encode()


def table(rows: Sequence[ParsedColumns], **types: pa.DataType) -> pa.Table:
    """Return the rows as Arrow, text and floats unless ``types`` says otherwise."""
    types = {"sensor_id": pa.string(), "time": pa.string(), **dict.fromkeys(KNOWN[2:], pa.float64())} | types
    return pa.table({name: pa.array([row.get(name) for row in rows], type_) for name, type_ in types.items()})


def arrow_stream(content: pa.Table, *, compression: str | None = None, rows_a_batch: int = 7) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, content.schema, options=options) as writer:
        writer.write_table(content, max_chunksize=rows_a_batch)
    return sink.getvalue()


def parquet(content: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(content, sink, **options)
    return sink.getvalue()


def iso(time_us: int) -> str:
    return (EPOCH + timedelta(microseconds=time_us)).isoformat()


recent_us = st.integers(T0_US - 29 * 86_400_000_000, T0_US + 9 * 60_000_000)
sensor_ids = st.sampled_from(
    ["a", "b", "greenhouse-1", "café 🌱", " spaced ", 'quo"ted', "com,ma", "0x1f", "null", "NaN"]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.none() | finite | st.sampled_from([0, -7, 21.5, 1e-300, 2**53 + 1])


def iso_texts(time_us: int) -> st.SearchStrategy[str]:
    """Draw one time in the ways that ISO 8601 allows."""
    moment = EPOCH + timedelta(microseconds=time_us)
    offset = timedelta(minutes=150)
    return st.sampled_from(
        [
            moment.isoformat(),
            moment.isoformat().replace("+00:00", "Z"),
            moment.isoformat().replace("+00:00", "z"),
            f"{moment.date() - timedelta(days=1)}T24:00:00Z",
            f"{moment.date() - timedelta(days=1)} 23:59:60",
            moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            moment.replace(tzinfo=None).isoformat(),
            moment.replace(tzinfo=None).isoformat(sep=" ", timespec="minutes"),
            moment.date().isoformat(),
            (moment + offset).replace(tzinfo=None).isoformat() + "+02:30",
            (moment + offset).replace(tzinfo=None).isoformat() + "+0230",
            moment.strftime("%Y%m%dT%H%M%SZ"),
            moment.strftime("%G-W%V-%u"),
        ]
    )


good_times = st.one_of(
    st.none(),
    recent_us.map(lambda time_us: time_us // 1_000_000),
    recent_us.map(lambda time_us: time_us // 1_000),
    recent_us,
    recent_us.map(lambda time_us: time_us * 1_000 + 999),
    recent_us.map(lambda time_us: time_us / 1_000_000),
    recent_us.map(lambda time_us: time_us / 1_000),
    recent_us.flatmap(iso_texts),
    recent_us.map(str),
    recent_us.map(lambda time_us: repr(time_us / 1_000)),
)

bad_sensor_ids: st.SearchStrategy[object] = st.sampled_from(
    [None, "", "  ", "\u00a0", "x" * 256, "nul\0", 7, True, ["a"], {}, 1.5]
)
bad_times = st.sampled_from(
    [
        *("yesterday", "", " ", "2023-02-30", "1850-01-01", "2023-01-01T00:00:00Z", "2024-01-01", "1" * 70, "0x64a"),
        *(True, [], {}, 0, -1, 1e300, float("nan"), float("inf"), 10**25, 10**400, 5 * 10**9, 2**63, -(2**63), "nan"),
        *("2023-07-12T14:30:45Z\0", "９", "1_0", "1e999", "1e12"),
    ]
)
bad_metrics = st.sampled_from(
    [
        "warm",
        True,
        False,
        [],
        {},
        float("inf"),
        -float("inf"),
        10**400,
        "nan.",
        "Infinity",
        "1_0",
        "٣",
        "0x1",
    ]
)
odd_metrics = st.sampled_from(
    ["21.5", " 7 ", "+.5e1", "1.", "-0", 2**70, None, float("nan"), "nan", " NA ", "#N/A", "-nan", "None", ""]
)


def columns_of_a_row(row_is_good: bool) -> st.SearchStrategy[dict[str, object]]:
    if row_is_good:
        names, times, values = sensor_ids, good_times, metrics
    else:
        names = st.one_of(sensor_ids, sensor_ids, bad_sensor_ids)
        times = st.one_of(good_times, good_times, bad_times)
        values = st.one_of(metrics, metrics, odd_metrics, bad_metrics)
    return st.fixed_dictionaries(
        {"sensor_id": names, "temperature": values},
        optional={"time": times, "humidity": values, "pressure": values},
    )


good_rows = columns_of_a_row(True)
unknown = st.dictionaries(
    st.sampled_from(["battery", "tags", "Temperature", ""]),
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.booleans(), st.just({"room": "x"}), st.just([1, 2])),
    max_size=2,
)
any_rows = st.one_of(good_rows, good_rows, columns_of_a_row(False), st.builds(dict.__or__, good_rows, unknown))


def alike(times: st.SearchStrategy[object], odd_times: Sequence[object]) -> st.SearchStrategy[list[dict[str, object]]]:
    """Draw rows whose times are written in one way, as one program does. Some are at the wrong time,
    under no name, or without a value, yet none that a column could not hold.
    """
    row = st.fixed_dictionaries(
        {"sensor_id": st.one_of(sensor_ids, sensor_ids, st.sampled_from(["", "  ", "x" * 256, "nul\0", None]))},
        optional={
            "time": st.one_of(st.none(), times, times, times, st.sampled_from(odd_times)),
            "temperature": metrics,
            "humidity": metrics,
            "pressure": metrics,
        },
    )
    return st.lists(row, max_size=12)


odd_numbers = [
    0,
    -1,
    1_689_172_245,
    5 * 10**9 - 1,
    5 * 10**9,
    5 * 10**12 - 1,
    5 * 10**12,
    5 * 10**15,
    9_214_646_400_000_000,
]
odd_numbers += [20230712, 45119, 946_684_799, 946_684_800, -1_999, -2_208_988_800, -2_208_988_801, 2**63 - 1, -(2**63)]
rows_alike = st.one_of(
    alike(recent_us.map(lambda time_us: time_us // 1_000_000), odd_numbers),
    alike(recent_us.map(lambda time_us: time_us // 1_000), odd_numbers),
    alike(recent_us, odd_numbers),
    alike(recent_us.map(lambda time_us: time_us * 1_000 + 999), odd_numbers),
    alike(recent_us.map(lambda time_us: time_us / 1_000_000), [float(number) for number in odd_numbers]),
    alike(recent_us.map(lambda time_us: time_us / 1_000), [0.5, 1.5, -0.5, -2.5, 1e300, 4e18, 5e15, 5e9 - 0.25]),
    alike(recent_us.map(str), [str(number) for number in odd_numbers]),
    alike(recent_us.map(lambda time_us: repr(time_us / 1_000)), ["0.5", "-1e3", "1e400", "5e15", "1689172245"]),
    alike(
        recent_us.map(lambda time_us: (EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")),
        ["1850-01-01T00:00:00Z", "2023-01-01T00:00:00Z", "2023-07-12T14:30:45+14:00", "0001-01-01T00:00:00Z"],
    ),
    alike(
        recent_us.map(lambda time_us: (EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%d %H:%M:%S")),
        ["1850-01-01", "2023-01-01 00:00", "9999-12-31T23:59:59"],
    ),
    alike(recent_us.map(iso), ["2023-07-12T14:30:45-05:30", "2023-07-12T14:30+05", "2262-01-01T00:00:00+00:00"]),
)
many_rows = st.one_of(rows_alike, rows_alike, st.lists(good_rows, max_size=12), st.lists(any_rows, max_size=12))


def as_written(value: object) -> str:
    """JSON without escapes, if it needs none."""
    return json.dumps(value, ensure_ascii=False)


plain_texts = st.one_of(
    st.sampled_from(["a", "café 🌱", " spaced ", "", " ", "null", "NaN", "0x1f", "aa:bb:cc:dd", "'a'", "#", "x" * 256]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\,{}'), max_size=5),
)
plain_numbers = st.one_of(
    st.sampled_from(["null", "0", "-0", "-0.0", "7E2", "1e+5", "-1.250", "5e-324", "9007199254740993", "1" * 300]),
    finite.map(json.dumps),
)
odd_numbers_as_written = st.sampled_from(["1e400", "1e-400", "01", "+1", ".5", "1.", "0x1", "NaN", "1" * 400, "1 ", ""])
times_as_written = st.sampled_from(
    [
        st.none() | recent_us,
        st.none() | recent_us.map(lambda time_us: time_us // 1_000_000),
        st.none() | recent_us | recent_us.map(lambda time_us: time_us / 1_000_000),
        st.none() | recent_us.map(iso),
        recent_us.map(lambda time_us: iso(time_us).replace("T", " ")),
        recent_us.map(str),
        st.none() | plain_texts,
    ]
).map(lambda times: times.map(as_written))
odd_times_as_written = st.sampled_from(
    [*("null", '"null"', "-0", "0.5", "5e15", "1e19", "1e999"), str(2**63 - 1), str(2**63), str(-(2**63) - 1), '"12,5"']
)


@st.composite
def lines_of_one_shape(draw: st.DrawFn, *, oddities: bool) -> bytes:
    """Draw NDJSON from one program with plain values, or some that are not with ``oddities``."""
    columns = draw(st.permutations(KNOWN))[: draw(st.integers(1, len(KNOWN)))]
    columns = columns if "sensor_id" in columns else ["sensor_id", *columns]
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    values = {
        "sensor_id": plain_texts.map(as_written),
        "time": draw(times_as_written),
        **dict.fromkeys(KNOWN[2:], plain_numbers),
    }
    if not oddities and comma != ",":
        for name in ("sensor_id", "time"):
            values[name] = values[name].map(lambda text: text.replace(" ", "_"))
    if oddities:
        values = {name: draw(st.sampled_from([each, each, each | odd_of(name)])) for name, each in values.items()}
    each = st.tuples(*(values[name] for name in columns))
    lines = draw(st.lists(each, min_size=1, max_size=8))
    return "\n".join(
        "{" + comma.join(f'"{name}"{colon}{value}' for name, value in zip(columns, line, strict=True)) + "}"
        for line in lines
    ).encode()


def odd_of(name: str) -> st.SearchStrategy[str]:
    """Draw values that a column may read differently, or not at all."""
    if name == "sensor_id":
        return (sensor_ids | bad_sensor_ids).map(json.dumps)
    return odd_times_as_written if name == "time" else odd_numbers_as_written


many_rules = st.builds(
    Rules,
    st.one_of(st.just(Precision.AUTO), st.sampled_from(Precision)),
    st.sampled_from([WINDOW, ANY_TIME]),
    st.just(T0_US),
    st.sampled_from([1, 2, 50]),
)


def compare(expected: reference.Expected, body: bytes, form: Format, held_to: Rules) -> None:
    decoded = decode(body, form, held_to)
    assert rows_of(decoded) == expected.rows
    assert decoded.rejected == len(expected.faults)
    assert places(decoded) == expected.faults[:MAX_ERRORS]
    assert list(decoded.unknown_columns) == expected.unknown
    assert all(fault.reason for fault in decoded.errors)
    json.dumps([fault.value for fault in decoded.errors], allow_nan=False)
