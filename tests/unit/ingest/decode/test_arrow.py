"""Arrow streams and Parquet: every useful type is read, damage is refused, and memory stays bounded."""

import gzip
import io
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import BodyTooLarge, MalformedBody, TooManyRows
from app.ingest.decode.readings import Format
from app.ingest.decode.timestamps import Precision
from tests.attacks import bombs
from tests.support import reference
from tests.support.bodies import (
    ANY_TIME,
    arrow_stream,
    compare,
    decode,
    iso,
    many_rules,
    parquet,
    places,
    recent_us,
    rows_of,
    rules,
    table,
)
from tests.support.examples import examples
from tests.support.samples import T0_US

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
A_DAY_US = 86_400_000_000
A_DAY_MS = 86_400_000
GOOD = {"sensor_id": "a", "time": T0_US, "temperature": 21.5}
WRITERS: dict[Format, Callable[[pa.Table], bytes]] = {Format.ARROW_STREAM: arrow_stream, Format.PARQUET: parquet}
NO_TIME = "not a time"

sensors = st.sampled_from(["a", "b", "café 🌱", "", " ", "x" * 255, "x" * 256, "nul\0", None])
values = st.none() | st.floats()
counts = st.none() | st.integers(-(2**31), 2**31 - 1) | st.integers(-(2**63), 2**63 - 1)
rows_of_columns = st.lists(
    st.fixed_dictionaries({"sensor_id": sensors, "temperature": values, "humidity": values, "pressure": values}),
    max_size=10,
)


@pytest.mark.parametrize("form", WRITERS)
@given(rows=rows_of_columns, times=st.lists(st.none() | recent_us, min_size=10, max_size=10), held_to=many_rules)
def test_readings_good_and_bad(
    form: Format,
    rows: list[dict[str, object]],
    times: list[int | None],
    held_to: reference.Rules,
) -> None:
    as_sent = [row | {"time": time} for row, time in zip(rows, times, strict=False)]
    as_meant = [row | {"time": meant(time, 1_000)} for row, time in zip(rows, times, strict=False)]
    body = WRITERS[form](table(as_sent, time=pa.timestamp("us", "Europe/Berlin")))
    compare(reference.judge(as_meant, [], held_to), body, form, held_to)


UNITS_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


def meant(count: int | None, unit_ns: int) -> object:
    """Return the time so many units after 1970, or an invalid value if Python has no such time."""
    if count is None:
        return None
    try:
        return EPOCH + timedelta(microseconds=count * unit_ns // 1_000)
    except OverflowError:
        return NO_TIME


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("unit", UNITS_NS)
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "+05:30"])
@given(sent=st.lists(counts, max_size=5), recent=st.lists(recent_us, max_size=5))
@example(sent=[-(2**63), 2**63 - 1, -1, None, 9_214_646_400_000_000, -2_208_988_800_000_000], recent=[])
@examples(15)
def test_timestamps_of_any_unit_and_zone(
    form: Format,
    unit: str,
    zone: str | None,
    sent: list[int | None],
    recent: list[int],
) -> None:
    sent = sent + [time_us * 1_000 // UNITS_NS[unit] for time_us in recent]
    if form is Format.PARQUET and unit == "s":
        sent = [count for count in sent if count is None or abs(count) < 2**53]  # Parquet has no seconds
    held_to = rules(window=ANY_TIME, max_chunks=1_000)
    column = pa.array(sent, pa.int64()).cast(pa.timestamp(unit, zone))
    body = WRITERS[form](pa.table({"time": column, "sensor_id": ["a"] * len(sent), "temperature": [1] * len(sent)}))
    as_meant = [{"sensor_id": "a", "time": meant(count, UNITS_NS[unit]), "temperature": 1} for count in sent]
    compare(reference.judge(as_meant, [], held_to), body, form, held_to)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("type_", "sent"),
    [
        (
            pa.int64(),
            [None, 0, -1, T0_US, T0_US // 1_000, T0_US * 1_000 - 1, -(2**63), 2**63 - 1, 5 * 10**9, 5 * 10**15],
        ),
        (pa.int32(), [None, 0, -1, T0_US // 10**6, 2**31 - 1]),
        (pa.uint64(), [None, 0, T0_US, 2**63, 2**64 - 1, 5 * 10**12]),
        (pa.float64(), [None, 0.5, -2.5, T0_US / 1e6, T0_US / 1e3, 1e300, float("inf"), float("nan"), 1e19]),
        (pa.string(), [None, iso(T0_US), str(T0_US), "", "noon", "1689172245.5", "2023-W28-3", "x" * 100]),
        (pa.large_string(), [None, iso(T0_US), "1850-01-01"]),
        (pa.dictionary(pa.int8(), pa.string()), [None, iso(T0_US), iso(T0_US), "noon"]),
        (pa.date32(), [None, date(2023, 7, 12), date(1899, 12, 31), date(1969, 7, 20)]),
        (pa.date64(), [None, date(2023, 7, 12), date(9999, 12, 31)]),
        (pa.null(), [None, None]),
    ],
    ids=str,
)
def test_times_of_other_types(form: Format, precision: Precision, type_: pa.DataType, sent: list[object]) -> None:
    held_to = rules(precision=precision, window=ANY_TIME, max_chunks=1_000)
    names = ["a"] * len(sent)
    body = WRITERS[form](
        pa.table({"sensor_id": names, "time": pa.array(sent, type_), "temperature": [1.0] * len(sent)})
    )
    rows: list[object] = [{"sensor_id": "a", "time": time, "temperature": 1.0} for time in sent]
    compare(reference.judge(rows, [], held_to), body, form, held_to)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array(["b", None, "a", "b"]), ["b", "a", "b"]),
        (pa.array(["b", None, "a", "b"], pa.large_string()), ["b", "a", "b"]),
        (pa.array(["b", None, "a", "b"], pa.string_view()), ["b", "a", "b"]),
        (pa.array([b"b", None, b"a", b"b"], pa.binary()), ["b", "a", "b"]),
        (pa.array([7, None, -8, 7], pa.int64()), ["7", "-8", "7"]),
        (pa.array([7, None, 8, 7], pa.uint8()), ["7", "8", "7"]),
        (pa.array(["b", None, "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array(["b", None, "a", "b"]).cast(pa.dictionary(pa.int8(), pa.large_string())), ["b", "a", "b"]),
        (
            pa.DictionaryArray.from_arrays([1, 0, 3, 2], ["unused", "b", "b", "a"]).slice(0, 4),
            ["b", "unused", "a", "b"],
        ),
        (pa.DictionaryArray.from_arrays(pa.array([1, None, 2, 1]), pa.array([0, 7, 8])), ["7", "8", "7"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_names_of_any_type(form: Format, column: pa.Array, named: list[str]) -> None:
    decoded = decode(WRITERS[form](pa.table({"sensor_id": column, "temperature": [1.0] * 4})), form)
    assert [row[0] for row in rows_of(decoded)] == named
    assert places(decoded) == [(2, "sensor_id")] * (4 - len(named))


def test_a_null_in_the_dictionary_itself_is_no_name() -> None:
    """Parquet can't write one."""
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, 2, 1]), pa.array([None, "b", "a"]))
    decoded = decode(arrow_stream(pa.table({"sensor_id": column, "temperature": [1.0] * 4})), Format.ARROW_STREAM)
    assert [row[0] for row in rows_of(decoded)] == ["b", "a", "b"]
    assert places(decoded) == [(2, "sensor_id")]


@pytest.mark.parametrize(
    ("column", "read"),
    [
        (pa.array([1, None, -3], pa.int8()), [1.0, None, -3.0]),
        (pa.array([2**64 - 1, None, 2**53 + 1], pa.uint64()), [2.0**64, None, 2.0**53]),
        (pa.array([1.5, None, 0.25], pa.float32()), [1.5, None, 0.25]),
        (pa.array([1.5, None, float("nan")], pa.float16()), [1.5, None, None]),
        (pa.array([1.5, None, float("nan")]).dictionary_encode(), [1.5, None, None]),
        (pa.array([1, None, -2]).cast(pa.decimal128(30, 2)), [1.0, None, -2.0]),
        (pa.nulls(3), [None, None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_metrics_of_any_number(column: pa.Array, read: list[float | None]) -> None:
    content = pa.table({"sensor_id": ["a"] * 3, "humidity": column, "pressure": [1.0] * 3})
    assert [row[3] for row in rows_of(decode(arrow_stream(content), Format.ARROW_STREAM))] == read


def reinterpreted(numbers: list[int], type_: pa.DataType) -> pa.Array:
    """Return whole numbers as the digits of decimals, with a scale that Arrow can't write."""
    digits = pa.array(numbers, pa.decimal128(38, 0))
    return pa.Array.from_buffers(type_, len(digits), digits.buffers())


@given(
    st.lists(st.integers(-(10**38) + 1, 10**38 - 1) | st.integers(-(10**7), 10**7), min_size=1, max_size=20),
    st.integers(-38, 38),
)
@example([7948, 11, -3], 1)
def test_decimals_to_the_last_bit(digits: list[int], scale: int) -> None:
    """A decimal becomes the float nearest to it, as it does in Python."""
    values = [Decimal(number).scaleb(-scale, Context(prec=100)) for number in digits]
    column = reinterpreted(digits, pa.decimal128(38, scale))
    for each in (column, column.dictionary_encode()):
        content = pa.table({"sensor_id": ["a"] * len(digits), "humidity": each})
        taken = rows_of(decode(arrow_stream(content), Format.ARROW_STREAM))
        assert [row[3] for row in taken] == [float(value) for value in values]


@pytest.mark.parametrize("type_", [pa.decimal32(7, 1), pa.decimal64(7, 1), pa.decimal128(7, 1), pa.decimal256(7, 1)])
@pytest.mark.parametrize("form", WRITERS)
def test_two_thousand_decimals(form: Format, type_: pa.DataType) -> None:
    """Two thousand decimals of every width are read to the last bit."""
    values = [Decimal(number).scaleb(-1) for number in range(7_000, 9_000)]
    content = pa.table({"sensor_id": ["a"] * 2_000, "humidity": pa.array(values, pa.decimal128(7, 1)).cast(type_)})
    assert [row[3] for row in rows_of(decode(WRITERS[form](content), form))] == [float(value) for value in values]


EXTREMES = [0, -1, 10**9, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 10**18]
ODD_TIMES = [
    pa.array(EXTREMES[:5], pa.int32()).view(pa.date32()),
    pa.array([count // A_DAY_MS * A_DAY_MS for count in EXTREMES[:6]], pa.int64()).view(pa.date64()),
    *(
        pa.array(EXTREMES, pa.int64()).view(pa.timestamp(unit, zone))
        for unit in UNITS_NS
        for zone in (None, "America/New_York", "Mars/Olympus", "+99:99")
    ),
]


@pytest.mark.parametrize("times", [*ODD_TIMES, ODD_TIMES[0].dictionary_encode()], ids=lambda times: str(times.type))
def test_time_beyond_the_years_of_python(times: pa.Array) -> None:
    """Rows with any time are stored, or rejected with a value that JSON can show."""
    content = pa.table({"sensor_id": ["a"] * len(times), "time": times, "temperature": [1.0] * len(times)})
    bodies = [(arrow_stream(content), Format.ARROW_STREAM)]
    with suppress(pa.ArrowException):  # Parquet can't hold all of them
        bodies.append((parquet(content), Format.PARQUET))
    for body, form in bodies:
        decoded = decode(body, form, rules(window=ANY_TIME))
        assert decoded.rejected + decoded.batch.rows == len(times)
        assert decoded.rejected
        assert all(isinstance(fault.value, int | str) for fault in decoded.errors)


def test_nan_is_no_value_and_infinity_is_a_fault() -> None:
    """NaN counts as missing, because NumPy and pandas write missing values so. Infinity is a fault."""
    nan, inf = float("nan"), float("inf")
    content = table(
        [GOOD | {"temperature": nan}, GOOD | {"temperature": nan, "humidity": 1.0}, GOOD | {"pressure": inf}],
        time=pa.int64(),
    )
    decoded = decode(arrow_stream(content), Format.ARROW_STREAM)
    assert rows_of(decoded) == [("a", T0_US, None, 1.0, None)]
    assert [(fault.row, fault.column, fault.value) for fault in decoded.errors] == [
        (1, None, None),
        (3, "pressure", "Infinity"),
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"temperature": [1.0]}, "no column sensor_id"),
        ({"sensor_id": [1.5]}, "sensor_id should have text, and not double"),
        ({"sensor_id": [True]}, "sensor_id should have text, and not bool"),
        ({"sensor_id": [b"\xff"]}, "UTF8"),
        ({"sensor_id": ["a"], "temperature": [True]}, "temperature should have numbers, and not bool"),
        ({"sensor_id": ["a"], "temperature": ["21.5"]}, "temperature should have numbers, and not string"),
        ({"sensor_id": ["a"], "humidity": [[1.0]]}, "humidity should (have numbers, and not list|be flat)"),
        ({"sensor_id": ["a"], "time": [{"x": 1}]}, "time should (have times or numbers, and not struct|be flat)"),
        ({"sensor_id": ["a"], "time": [True]}, "time should have times or numbers, and not bool"),
    ],
)
@pytest.mark.parametrize("form", WRITERS)
def test_a_column_of_a_type_that_cannot_be_meant_refuses_the_body(
    form: Format, columns: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(MalformedBody, match=said):
        decode(WRITERS[form](pa.table(columns)), form)


def test_a_column_that_comes_twice_refuses_the_body() -> None:
    content = pa.table([["a"], [1.0], [2.0]], names=["sensor_id", "temperature", "temperature"])
    with pytest.raises(MalformedBody, match="twice"):
        decode(arrow_stream(content), Format.ARROW_STREAM)


@pytest.mark.parametrize("form", WRITERS)
def test_unknown_columns_are_named_and_not_read(form: Format) -> None:
    content = pa.table({"x": [{"y": 1}], "temperature": [1.5], "sensor_id": ["a"], "battery": ["full"]})
    decoded = decode(WRITERS[form](content), form)
    assert (rows_of(decoded), list(decoded.unknown_columns)) == ([("a", T0_US, 1.5, None, None)], ["x", "battery"])


def test_a_moment_that_python_has_none_for_is_shown_all_the_same() -> None:
    column = pa.array([10**12, T0_US // 10**6 - 10**8], pa.int64()).cast(pa.timestamp("s", "Mars/Olympus"))
    content = pa.table({"sensor_id": ["a", "b"], "time": column, "temperature": [1.0, 1.0]})
    decoded = decode(arrow_stream(content), Format.ARROW_STREAM)
    assert [fault.value for fault in decoded.errors] == [10**12, T0_US // 10**6 - 10**8]


def test_what_follows_a_stream_is_not_dropped_in_silence() -> None:
    with pytest.raises(MalformedBody, match="one stream a request"):
        decode(2 * arrow_stream(table([GOOD], time=pa.int64())), Format.ARROW_STREAM)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_stream_that_would_swell_is_refused_before_it_does(compression: str) -> None:
    zeros = pa.nulls(10_000_000, pa.float64()).fill_null(0.0)
    body = arrow_stream(
        pa.table({"sensor_id": pa.array(["a"]).take(pa.nulls(10_000_000, pa.int32())), "temperature": zeros}),
        compression=compression,
        rows_a_batch=10_000_000,
    )
    del zeros
    assert len(body) < 1_000_000
    held = pa.total_allocated_bytes()
    with pytest.raises(BodyTooLarge, match="when inflated"):
        decode(body, Format.ARROW_STREAM, max_rows=1_000)
    assert pa.total_allocated_bytes() <= held


def test_dictionary_that_grows_with_every_batch() -> None:
    """A dictionary that every batch would copy is counted before the first copy."""
    body = bombs.growing_dictionary().body
    assert len(body) < 1_000_000
    held = pa.total_allocated_bytes()
    with pytest.raises((BodyTooLarge, MalformedBody), match=r"when inflated|larger batches"):
        decode(body, Format.ARROW_STREAM)
    assert pa.total_allocated_bytes() <= held


def test_dictionary_that_many_batches_share() -> None:
    """A dictionary that many batches share is converted once, and for very many it is not looked at for each."""
    body = bombs.shared_dictionary().body
    default = pa.default_memory_pool()
    pa.set_memory_pool(pool := pa.proxy_memory_pool(default))
    try:
        assert decode(body, Format.ARROW_STREAM).rejected == 90
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 100_000_000
    with pytest.raises(MalformedBody, match="write larger batches"):
        decode(bombs.shared_dictionary_of_many().body, Format.ARROW_STREAM)


def test_many_batches() -> None:
    """A body with too many batches, or a schema with too many columns, is refused."""
    stream = gzip.decompress(bombs.tiny_batches().body)
    with pytest.raises(MalformedBody, match="more than 10,000 batches"):
        decode(stream, Format.ARROW_STREAM)
    columns = {"sensor_id": ["a"], **{str(number): [1.0] for number in range(1_000)}}
    with pytest.raises(MalformedBody, match="1,001 columns"):
        decode(arrow_stream(pa.table(columns)), Format.ARROW_STREAM)
    with pytest.raises(MalformedBody, match="The schema of the Arrow stream has"):
        decode(arrow_stream(pa.table({"sensor_id": ["a"], "x" * (1 << 20): [1.0]})), Format.ARROW_STREAM)


def _view_of_the_same_bytes_each_row(rows: int, size: int) -> pa.Array:
    text = b"x" * size
    view = size.to_bytes(4, "little") + text[:4] + (0).to_bytes(4, "little") + (0).to_bytes(4, "little")
    return pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(view * rows), pa.py_buffer(text)])


def test_a_long_text_in_every_row_is_not_copied_for_every_row() -> None:
    """A megabyte in each of 10,000 rows would be ten gigabytes: as a dictionary, as a view, and in Parquet."""
    rows = 10_000
    temperature = [1.0] * rows
    once = pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()).fill_null(0), ["x" * 900_000])
    bodies = [
        (
            arrow_stream(pa.table({"sensor_id": once, "temperature": temperature}), rows_a_batch=rows),
            Format.ARROW_STREAM,
        ),
        (parquet(pa.table({"sensor_id": once, "temperature": temperature})), Format.PARQUET),
        (parquet(pa.table({"time": once, "sensor_id": ["a"] * rows, "temperature": temperature})), Format.PARQUET),
    ]
    for body, form in bodies:
        assert len(body) < 2_000_000
        decoded = decode(body, form)
        assert (decoded.rejected, len(decoded.errors)) == (rows, 100)
    assert pa.default_memory_pool().max_memory() < 1_000_000_000
    view = pa.table({"sensor_id": _view_of_the_same_bytes_each_row(rows, 900_000), "temperature": temperature})
    with pytest.raises(BodyTooLarge):
        decode(arrow_stream(view, rows_a_batch=rows), Format.ARROW_STREAM, max_rows=rows)


DELTAS: dict[str, dict[str, object]] = {
    f"{encoding} {codec} {version}": {
        "use_dictionary": False,
        "column_encoding": {"sensor_id": encoding},
        "compression": codec,
        "data_page_version": version,
    }
    for encoding in ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
    for codec in ("none", "snappy", "gzip", "zstd", "brotli")
    for version in ("1.0", "2.0")
}


@pytest.mark.parametrize("options", DELTAS.values(), ids=DELTAS)
@given(names=st.lists(sensors, min_size=1, max_size=300))
@examples(10)
def test_text_in_delta_encodings(options: dict[str, object], names: list[str | None]) -> None:
    """Text that is written as lengths and what differs is taken as any other."""
    rows = [{"sensor_id": name, "time": T0_US, "temperature": 1.0} for name in names]
    body = parquet(table(rows, time=pa.int64()), **options)
    compare(reference.judge(rows, [], rules()), body, Format.PARQUET, rules())


def test_compression_that_stands_in_metadata() -> None:
    """Pyarrow still reads how Arrow 0.17 said that it had compressed: 8 KB that came to 400 MB were counted as none."""
    inflated_bytes = 30 << 20
    compressed = inflated_bytes.to_bytes(8, "little") + pa.compress(bytes(inflated_bytes), codec="zstd", asbytes=True)
    values = pa.Array.from_buffers(pa.float64(), len(compressed) // 8, [None, pa.py_buffer(compressed)])
    content = pa.record_batch({"sensor_id": pa.array(["a"] * len(values)).dictionary_encode(), "temperature": values})
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    for metadata in (None, {"ARROW:experimental_compression": "zstd"}):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, content.schema, options=options) as writer:
            writer.write_batch(content, custom_metadata=metadata)
        if metadata is None:
            decode(sink.getvalue(), Format.ARROW_STREAM)
        else:
            with pytest.raises(MalformedBody, match=r"before Arrow 1\.0"):
                decode(sink.getvalue(), Format.ARROW_STREAM)


def test_text_that_is_the_same_in_every_row_but_for_its_end() -> None:
    """In DELTA_BYTE_ARRAY 10,000 times 900 KB are 100 KB: it is refused when 24 MB have come out."""
    options: dict[str, object] = {"use_dictionary": False, "column_encoding": {"sensor_id": "DELTA_BYTE_ARRAY"}}
    text = "x" * 900_000
    rows = [{"sensor_id": text, "temperature": 1.0}] * 200
    body = parquet(table(rows), **options)
    assert len(body) < 1_000_000
    with pytest.raises(BodyTooLarge):
        decode(body, Format.PARQUET)


BODIES = [
    (arrow_stream(table([GOOD] * 20, time=pa.timestamp("us"))), Format.ARROW_STREAM),
    (arrow_stream(table([GOOD] * 20, time=pa.int64()), compression="zstd"), Format.ARROW_STREAM),
    (
        arrow_stream(table([GOOD] * 20, time=pa.int64(), sensor_id=pa.dictionary(pa.int8(), pa.string()))),
        Format.ARROW_STREAM,
    ),
    (parquet(table([GOOD] * 20, time=pa.timestamp("us"))), Format.PARQUET),
    (parquet(table([GOOD] * 20, time=pa.int64()), compression="none", use_dictionary=False), Format.PARQUET),
    *((parquet(table([GOOD] * 20, time=pa.int64()), **options), Format.PARQUET) for options in DELTAS.values()),
]


@pytest.mark.parametrize(("body", "form"), BODIES)
def test_a_body_damaged_anywhere_is_decoded_or_refused(body: bytes, form: Format) -> None:
    chance = random.Random(1)
    for _ in range(1_000):
        damaged = bytearray(body)
        for _ in range(chance.choice((1, 1, 2, 5))):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        with suppress(MalformedBody, TooManyRows, BodyTooLarge):
            rows_of(decode(bytes(damaged), form, max_rows=1_000))


@pytest.mark.parametrize(("body", "form"), BODIES)
def test_a_body_that_is_cut_off_is_decoded_or_refused(body: bytes, form: Format) -> None:
    for length in range(0, len(body), 7):
        with suppress(MalformedBody):
            rows_of(decode(body[:length], form))


@pytest.mark.parametrize("size", [1, 100, 1_000])
def test_several_row_groups_and_batches_are_read_in_order(size: int) -> None:
    content = pa.table({"sensor_id": [str(place) for place in range(1_000)], "temperature": [1.0] * 1_000})
    sink = io.BytesIO()
    pq.write_table(content, sink, row_group_size=size)
    for body, form in (
        (sink.getvalue(), Format.PARQUET),
        (arrow_stream(content, rows_a_batch=size), Format.ARROW_STREAM),
    ):
        assert [row[0] for row in rows_of(decode(body, form))] == content["sensor_id"].to_pylist()
