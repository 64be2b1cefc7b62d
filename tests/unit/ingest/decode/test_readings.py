"""Bulk bodies in every format become exactly what the slow and obvious decoder makes of them."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BodyTooLarge, MalformedBody, TooManyRows
from app.ingest.decode.columns import columns_like_time
from app.ingest.decode.readings import Format
from app.ingest.decode.timestamps import Precision, TimeWindow
from app.ingest.decode.uniform import columns_of_one_shape
from tests.support import reference
from tests.support.bodies import (
    ANY_TIME,
    WAYS,
    WINDOW,
    any_rows,
    arrow_from,
    arrow_stream,
    compare,
    csv,
    decode,
    iso,
    json_array,
    json_columns,
    lines_of_one_shape,
    many_rows,
    many_rules,
    ndjson,
    parquet,
    places,
    recent_us,
    rows_of,
    rules,
    table,
)
from tests.support.examples import examples
from tests.support.reference import KNOWN, Rules
from tests.support.samples import T0_US, measures, names


@pytest.fixture(params=WAYS)
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Yield all ways to read the text formats."""
    with arrow_from(*WAYS[request.param]):
        yield


REFUSALS = (MalformedBody, TooManyRows, BodyTooLarge)


def hold(body: bytes, form: Format, held_to: Rules) -> None:
    """Assert that each decoder decodes as the reference does, or refuses what it refuses."""
    try:
        expected = reference.decode(body, form, held_to)
    except reference.MalformedError:
        expected = None
    for sizes_bytes in WAYS.values():
        with arrow_from(*sizes_bytes):
            if expected is not None:
                compare(expected, body, form, held_to)
            else:
                with pytest.raises(MalformedBody):
                    decode(body, form, held_to)


lines = st.one_of(
    any_rows.map(json.dumps),
    any_rows.map(lambda row: json.dumps(row, ensure_ascii=False, separators=(", ", " : "))),
    st.sampled_from(
        [
            *(
                "",
                " ",
                "\r",
                "{",
                "}",
                "null",
                "7",
                "[1]",
                "{} {}",
                "{},{}",
                '{"sensor_id":"a","temperature":1}}',
                "\ufeff{}",
            ),
            *('{"sensor_id":"a","sensor_id":"b","temperature":1}', '{"sensor_id":"\\ud800","temperature":1}'),
            *(
                '{"temp\\u0065rature":1,"sensor_id":"a"}',
                '{"x":Inf}',
                '{"x":[{}',
                "{}]}",
                "]} null {",
                "nope\0",
                "\t{} ",
            ),
        ]
    ),
)


@given(many_rows, many_rules)
@examples(150)
def test_ndjson(rows: list[dict[str, object]], held_to: Rules) -> None:
    hold(ndjson(rows), Format.NDJSON, held_to)


@given(st.lists(lines, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), many_rules)
@examples(150)
def test_ndjson_with_lines_of_every_kind(sent: list[str], newline: str, at_the_end: bool, held_to: Rules) -> None:
    hold((newline.join(sent) + newline * at_the_end).encode(), Format.NDJSON, held_to)


@given(lines_of_one_shape(oddities=False), many_rules)
@examples(200)
def test_ndjson_of_one_shape(body: bytes, held_to: Rules) -> None:
    assert columns_of_one_shape(body, max_rows=100_000) is not None
    hold(body, Format.NDJSON, held_to)


@given(lines_of_one_shape(oddities=True), many_rules)
@examples(200)
def test_ndjson_of_one_shape_with_odd_values(body: bytes, held_to: Rules) -> None:
    hold(body, Format.NDJSON, held_to)


@given(many_rows, many_rules, st.sampled_from([None, 1]), st.booleans())
@examples(150)
def test_json_arrays(rows: list[dict[str, object]], held_to: Rules, indent: int | None, ascii_only: bool) -> None:
    hold(json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode(), Format.JSON, held_to)


@given(st.lists(any_rows | st.sampled_from([None, 7, "x", [], [[]], True]), max_size=6), many_rules)
def test_json_arrays_of_anything(rows: list[object], held_to: Rules) -> None:
    hold(json_array(rows), Format.JSON, held_to)


@given(many_rows, many_rules)
def test_json_columns(rows: list[dict[str, object]], held_to: Rules) -> None:
    hold(json_columns(rows), Format.JSON, held_to)


@given(any_rows, many_rules)
def test_json_with_one_reading(row: dict[str, object], held_to: Rules) -> None:
    hold(json.dumps(row).encode(), Format.JSON, held_to)


fields = st.one_of(
    st.sampled_from(
        [
            "a",
            "b c",
            "café",
            "1.5",
            "-3",
            "+7",
            " 2 ",
            "",
            "NA",
            "nan",
            "NaN",
            "null",
            "NULL",
            "None",
            "inf",
            "N/A",
            "NAN",
            "-nan",
        ]
    ),
    st.sampled_from(["1e999", "1e-999", "0x1", "0x1p3", "-nan", "1_0", "true", "1.", ".5", "99999999999999999999"]),
    st.sampled_from(["2023-07-12T14:30:45Z", " 2023-07-12", "1689172245", "1689172245.5", "1689172245000", "  ", "\t"]),
    st.sampled_from(['"a""b"', '"x,y"', '"x\ny"', '"x\r\ny"', '""', '"', 'a"b', '"a"b', '"a" ', "nul\0", "x" * 256]),
)
wild_csv = st.builds(
    lambda header, records, newline, end: newline.join([header, *records]) + end,
    st.sampled_from(
        [
            *(
                "sensor_id,time,temperature",
                "sensor_id,temperature,x",
                " sensor_id ,time,humidity,",
                "temperature,sensor_id",
            ),
            *("sensor_id", '"sensor_id","temperature"', "sensor_id,a,a", "a,b", "sensor_id;time", "", "sensor_id,,"),
        ]
    ),
    st.lists(st.lists(fields, max_size=4).map(",".join), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\n", "\r\n", "\n\n", ","]),
)


@given(many_rows, many_rules, st.permutations(KNOWN))
@examples(150)
def test_csv(rows: list[dict[str, object]], held_to: Rules, order: list[str]) -> None:
    hold(csv(rows, order), Format.CSV, held_to)


@given(wild_csv, many_rules)
@examples(200)
def test_csv_with_fields_of_every_kind(text: str, held_to: Rules) -> None:
    hold(text.encode(), Format.CSV, held_to)


MUTATIONS = [
    b"",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b"]",
    b" null ",
    b"1",
    b"-",
    b"NaN",
    b"e9",
    b" ",
    b"\\",
    b":",
]


def mutated(body: bytes, places_: list[tuple[float, int, int]]) -> bytes:
    for where, length, which in places_:
        at = int(where * len(body))
        body = body[:at] + MUTATIONS[which] + body[at + length :]
    return body


mutations = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 2), st.integers(0, len(MUTATIONS) - 1)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("form", [Format.JSON, Format.NDJSON, Format.CSV])
@given(rows=st.lists(any_rows, min_size=1, max_size=5), changes=mutations)
@examples(150)
def test_a_text_damaged_anywhere(
    form: Format, rows: list[dict[str, object]], changes: list[tuple[float, int, int]]
) -> None:
    bodies = {Format.JSON: json_array(rows), Format.NDJSON: ndjson(rows), Format.CSV: csv(rows)}
    hold(mutated(bodies[form], changes), form, rules())


@given(lines_of_one_shape(oddities=False), mutations)
@examples(200)
def test_ndjson_of_one_shape_damaged_anywhere(body: bytes, changes: list[tuple[float, int, int]]) -> None:
    hold(mutated(body, changes), Format.NDJSON, rules())


@pytest.mark.parametrize("form", Format)
@given(body=st.binary(max_size=200))
def test_whatever_the_bytes_are_they_are_decoded_or_refused(form: Format, body: bytes) -> None:
    with suppress(*REFUSALS):
        decode(body, form)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "sensor_id": names,
                "time": st.none() | recent_us.map(iso),
                "temperature": measures,
                "humidity": st.none() | measures,
                "pressure": st.none() | measures,
            }
        ),
        max_size=10,
    )
)
def test_all_formats_make_the_same_batch_of_the_same_readings(rows: list[dict[str, object]]) -> None:
    bodies = [
        (ndjson(rows), Format.NDJSON),
        (json_array(rows), Format.JSON),
        (json_columns(rows), Format.JSON),
        (csv(rows), Format.CSV),
        (arrow_stream(table(rows)), Format.ARROW_STREAM),
        (parquet(table(rows)), Format.PARQUET),
    ]
    first, *others = [decode(body, form, rules(max_chunks=1_000)) for body, form in bodies]
    assert first.rejected == 0
    assert len(rows_of(first)) == len(rows)
    for other in others:
        assert other.batch.sensors.equals(first.batch.sensors)
        assert other.batch.columns.equals(first.batch.columns)
        assert (other.rejected, list(other.errors), list(other.unknown_columns)) == (0, [], [])


GOOD = {"sensor_id": "a", "time": "2023-07-12T14:30:45Z", "temperature": 21.5}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("form", [Format.JSON, Format.NDJSON, Format.CSV, Format.ARROW_STREAM, Format.PARQUET])
def test_no_readings_at_all_are_no_fault(form: Format) -> None:
    body = {
        Format.JSON: b"[]",
        Format.NDJSON: b"",
        Format.CSV: b"sensor_id,temperature",
        Format.ARROW_STREAM: arrow_stream(table([])),
        Format.PARQUET: parquet(table([])),
    }[form]
    decoded = decode(body, form)
    assert (rows_of(decoded), decoded.rejected, decoded.batch.sensors.to_pylist()) == ([], 0, [])


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("form", Format)
def test_more_rows_than_allowed_are_counted_and_refused(form: Format) -> None:
    rows = [GOOD] * 21
    body = {
        Format.JSON: json_array(rows),
        Format.NDJSON: ndjson(rows),
        Format.CSV: csv(rows),
        Format.ARROW_STREAM: arrow_stream(table(rows)),
        Format.PARQUET: parquet(table(rows)),
    }[form]
    assert len(rows_of(decode(body, form, max_rows=21))) == 21
    with pytest.raises(TooManyRows, match=r"21 readings.*20: split it"):
        decode(body, form, max_rows=20)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("value", [b"{}", b"[]", b"0", b'""'])
def test_far_more_values_than_readings_need_are_refused_before_they_take_memory(value: bytes) -> None:
    many = b"[" + value + (b"," + value) * 3_000_000 + b"]"
    for body, form in (
        (many, Format.JSON),
        (b'{"sensor_id":%b}' % many, Format.JSON),
        (b'{"sensor_id":"a","other":[%b]}' % many, Format.NDJSON),
    ):
        with pytest.raises(TooManyRows, match=r"values\. A request may have 2,100,000: split it"):
            decode(body, form)


def test_commas_and_brackets_in_texts_are_no_values() -> None:
    body = json_array([{**GOOD, "note": r'\\"{[,' * 1_000_000}])
    assert decode(body, Format.JSON).batch.rows == 1


@pytest.mark.parametrize("body", [ndjson([GOOD] * 20 + [{}]), ndjson([GOOD] * 20) + b"{\n"])
def test_bad_rows_count_as_rows(body: bytes) -> None:
    with pytest.raises(TooManyRows, match="21"):
        decode(body, Format.NDJSON, max_rows=20)


def test_only_the_first_hundred_faults_are_described() -> None:
    decoded = decode(ndjson([{"sensor_id": "a"}, GOOD] * 150), Format.NDJSON)
    assert (decoded.rejected, len(decoded.errors), len(rows_of(decoded))) == (150, 100, 150)
    assert [fault.row for fault in decoded.errors] == list(range(1, 201, 2))


@pytest.mark.usefixtures("each_way")
def test_the_newest_days_are_kept_and_the_others_told_the_cap() -> None:
    days = [3, 1, 2, 1, 4]
    rows = [GOOD | {"time": T0_US - day * 86_400_000_000} for day in days]
    decoded = decode(ndjson(rows), Format.NDJSON, rules(max_chunks=2))
    assert [T0_US - row[1] for row in rows_of(decoded)] == [day * 86_400_000_000 for day in (1, 2, 1)]
    assert places(decoded) == [(1, "time"), (5, "time")]
    assert "may span 2 distinct days (UTC)" in decoded.errors[0].reason
    assert "this one spans 4" in decoded.errors[0].reason
    assert "python -m app import" in decoded.errors[0].reason
    assert decoded.errors[0].value == T0_US - 3 * 86_400_000_000


def test_a_bad_row_uses_up_no_day() -> None:
    rows = [GOOD, GOOD | {"time": T0_US - 86_400_000_000, "temperature": None}]
    assert places(decode(ndjson(rows), Format.NDJSON, rules(max_chunks=1))) == [(2, None)]


def test_days_before_1970_are_days_too() -> None:
    rows = [GOOD | {"time": time} for time in ("1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z")]
    assert places(decode(ndjson(rows), Format.NDJSON, rules(window=ANY_TIME, max_chunks=1))) == [(1, "time")]
    assert not places(decode(ndjson(rows), Format.NDJSON, rules(window=ANY_TIME, max_chunks=2)))


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("changed", "column", "reason", "value"),
    [
        ({"sensor_id": None}, "sensor_id", "sensor_id is missing", None),
        ({"sensor_id": ""}, "sensor_id", "sensor_id is missing", ""),
        ({"sensor_id": " "}, "sensor_id", "sensor_id should not be blank", " "),
        ({"sensor_id": "x" * 300}, "sensor_id", "sensor_id should have at most 255 characters", "x" * 100),
        ({"sensor_id": "a\0"}, "sensor_id", "sensor_id should have no NUL character", "a\0"),
        ({"sensor_id": 7}, "sensor_id", "sensor_id should be text, and this is a number", 7),
        (
            {"time": "noon"},
            "time",
            "time should be ISO 8601, like 2023-07-12T14:30:45Z, or a number since 1970",
            "noon",
        ),
        ({"time": "1850-01-01"}, "time", "time should lie between the years 1900 and 2261", "1850-01-01"),
        (
            {"time": 946_684_800},
            "time",
            "time is more than 30 days ago, which is as far back as this server takes without backfill=true at POST "
            "/api/readings",
            946_684_800,
        ),
        (
            {"time": 20230712},
            "time",
            "time should be ISO 8601 or a number since 1970, and 20230712 looks like the date 2023-07-12 written as a "
            "number: send ISO 8601, or precision=s at POST /api/readings to mean 1970-08-23T03:38:32Z",
            20230712,
        ),
        ({"time": 1_800_000_000}, "time", "time is more than 10 minutes ahead of this server's clock", 1_800_000_000),
        ({"temperature": True}, "temperature", "temperature should be a number, not a boolean", True),
        ({"temperature": "warm"}, "temperature", "temperature should be a number", "warm"),
        ({"temperature": [1]}, "temperature", "temperature should be a number, and this is an array", "[1]"),
        ({"humidity": float("inf")}, "humidity", "humidity should be a finite number", "Infinity"),
        ({"pressure": float("-inf")}, "pressure", "pressure should be a finite number", "-Infinity"),
        ({"pressure": 10**400}, "pressure", "pressure should be a finite number", "1" + 99 * "0"),
        ({"temperature": None}, None, "one of temperature, humidity, pressure should be there", None),
        (
            {"sensor_id": 7, "time": True, "pressure": "x"},
            "sensor_id",
            "sensor_id should be text, and this is a number",
            7,
        ),
    ],
)
def test_a_fault_is_described_in_words_and_with_what_was_sent(
    changed: dict[str, object], column: str | None, reason: str, value: object
) -> None:
    [fault] = decode(ndjson([GOOD, GOOD | changed, GOOD]), Format.NDJSON).errors
    assert (fault.row, fault.column, fault.reason, fault.value) == (2, column, reason, value)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("body", "form", "said"),
    [
        (b"", Format.JSON, "is empty"),
        (b"nope", Format.JSON, "not JSON"),
        (b"[1", Format.JSON, "not JSON"),
        (b'["\xff"]', Format.JSON, "UTF-8"),
        (b"\xff\xfe[\0]\0", Format.JSON, "UTF-16"),
        (b"7", Format.JSON, "a number"),
        (b'"x"', Format.JSON, "text"),
        (b"[" * 100_000, Format.JSON, "not JSON"),
        (b"[" + b'{"x":' * 100_000, Format.JSON, "not JSON"),
        (b'[]} null {"readings":[]', Format.JSON, "not JSON"),
        (b'[]}null{"readings":[]', Format.JSON, "not JSON"),
        (b'[]} {"readings":[]', Format.JSON, "not JSON"),
        (b'[],"readings":[]', Format.JSON, "not JSON"),
        (b'{"temperature":[1]}', Format.JSON, "no column sensor_id"),
        (b'{"sensor_id":["a"],"temperature":1}', Format.JSON, "temperature should be an array"),
        (b'{"sensor_id":["a"],"temperature":[1,2]}', Format.JSON, "one length"),
        (b"", Format.CSV, "header"),
        (b"\n\n", Format.CSV, "header"),
        (b'sensor"id', Format.CSV, "header"),
        (b"a,b\n1,2", Format.CSV, "no column sensor_id"),
        (b"sensor_id;temperature\na;1", Format.CSV, "commas"),
        (b"sensor_id\ttemperature\na\t1", Format.CSV, "commas"),
        (b"sensor_id,temperature,temperature\na,1,2", Format.CSV, "twice"),
        (b"sensor_id,caf\xe9\na,1", Format.CSV, "UTF-8"),
        (b"", Format.ARROW_STREAM, "Arrow stream"),
        (b"ARROW1\0\0", Format.ARROW_STREAM, "Feather"),
        (b"", Format.PARQUET, "Parquet"),
        (b"PAR1PAR1", Format.PARQUET, "Parquet"),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_a_body_that_cannot_be_read_is_refused_with_what_to_do(body: bytes, form: Format, said: str) -> None:
    with pytest.raises(MalformedBody, match=said):
        decode(body, form)


@pytest.mark.usefixtures("each_way")
def test_a_line_nested_without_end_is_one_fault() -> None:
    deep = [b"[" * 100_000, b'{"sensor_id":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' * 100_000]
    good = json.dumps(GOOD).encode()
    decoded = decode(b"\n".join([good, deep[0], deep[1], deep[2], good]), Format.NDJSON)
    assert places(decoded) == [(2, None), (3, None), (4, None)]
    assert len(rows_of(decoded)) == 2


@pytest.mark.usefixtures("each_way")
def test_unknown_columns_are_named_wherever_they_are() -> None:
    rows = [GOOD, GOOD | {"tags": {"room": {"floor": 1}}}] + [GOOD] * 200 + [GOOD | {"battery": 3.3, "Temperature": 1}]
    for body, form in ((ndjson(rows), Format.NDJSON), (json_array(rows), Format.JSON)):
        decoded = decode(body, form)
        assert (list(decoded.unknown_columns), decoded.rejected) == (["tags", "battery", "Temperature"], 0)


def test_unknown_columns_are_named_in_few_words() -> None:
    decoded = decode(json_array([GOOD | {f"{place:03}" * 50: 1 for place in range(500)}]), Format.JSON)
    assert len(decoded.unknown_columns) == 100
    assert max(map(len, decoded.unknown_columns)) == 100


@pytest.mark.usefixtures("each_way")
def test_a_csv_from_a_spreadsheet() -> None:
    body = b'\xef\xbb\xbf"sensor_id", time ,temperature,note\r\n'
    body += b'"a\r\nb",2023-07-12 14:30:45,"1.5",\r\n\r\nc, ,NA,"x"\r\n,,,\r\n'
    decoded = decode(body, Format.CSV)
    assert rows_of(decoded) == [("a\r\nb", T0_US, 1.5, None, None)]
    assert places(decoded) == [(2, None), (3, "sensor_id")]
    assert list(decoded.unknown_columns) == ["note"]


@pytest.mark.usefixtures("each_way")
def test_a_csv_row_with_too_few_or_too_many_fields_costs_itself_alone() -> None:
    body = b'sensor_id,temperature\na,1\nb\nc,3,\n"d,4\ne,5\nf,6'
    decoded = decode(body, Format.CSV)
    assert [row[0] for row in rows_of(decoded)] == ["a", "e", "f"]
    assert [(fault.row, fault.value) for fault in decoded.errors] == [(2, "b"), (3, "c,3,"), (4, '"d,4')]
    assert decoded.errors[0].reason == "the row has 1 field where the header has 2"
    assert decoded.errors[1].reason == "the row has 3 fields where the header has 2"


def test_what_is_blank_is_what_the_single_readings_parser_finds_blank() -> None:
    """Every character alone: bulk names are looked at by Arrow, those of single readings by Python."""
    characters = [character for code in range(0x3100) if (character := chr(code)) != "\0"]
    decoded = decode(json_array([{"sensor_id": each, "temperature": 1.5} for each in characters]), Format.JSON)
    assert decoded.batch.sensors.to_pylist() == [each for each in characters if each.strip()]
    assert decoded.rejected == sum(map(str.isspace, map(chr, range(0x110000))))


@pytest.mark.usefixtures("each_way")
def test_text_that_is_no_utf8_costs_its_line_alone() -> None:
    good = json.dumps(GOOD).encode()
    decoded = decode(good + b'\n{"sensor_id":"\xff","temperature":1}\n' + good, Format.NDJSON)
    assert (len(rows_of(decoded)), places(decoded)) == (2, [(2, None)])
    decoded = decode(b"sensor_id,temperature\na,1\n\xff,2\nb,3\n", Format.CSV)
    assert ([row[0] for row in rows_of(decoded)], places(decoded)) == (["a", "b"], [(2, None)])


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("precision", "number"),
    [
        (Precision.S, T0_US // 10**6),
        (Precision.MS, T0_US // 10**3),
        (Precision.US, T0_US),
        (Precision.NS, T0_US * 10**3),
    ],
)
@pytest.mark.parametrize("write", [int, float, str])
def test_a_precision_is_believed(precision: Precision, number: int, write: type) -> None:
    for form, body in (
        (Format.NDJSON, ndjson([GOOD | {"time": write(number)}])),
        (Format.CSV, csv([GOOD | {"time": write(number)}])),
    ):
        assert rows_of(decode(body, form, rules(precision=precision)))[0][1] == T0_US
        wrong = Precision.S if precision is not Precision.S else Precision.NS
        assert places(decode(body, form, rules(precision=wrong))) == [(1, "time")]


@pytest.mark.parametrize("faulty", [0, 1, 3])
def test_many_rows_with_few_faults(faulty: int) -> None:
    """More rows than fit a sample, so that what comes late is met in the middle of Arrow's work."""
    chance = random.Random(faulty)
    rows = [GOOD | {"sensor_id": f"s{chance.randrange(50)}", "temperature": chance.random()} for _ in range(1_000)]
    for _ in range(faulty):
        rows[chance.randrange(1_000)]["temperature"] = chance.choice(["warm", None, True, "21.5", 10**400])
    for body, form in ((ndjson(rows), Format.NDJSON), (json_array(rows), Format.JSON), (csv(rows), Format.CSV)):
        hold(body, form, rules())


N = 200_000
HOSTILE = [
    (b"{}" + b"\n" * N + b"{}", Format.NDJSON),
    (b" " * N + b"{" + b" " * N + b"\n" + b" " * N, Format.NDJSON),
    (b"{\n" * N, Format.NDJSON),
    (b'{"a":' * N, Format.NDJSON),
    ((b'{"a":' * 500 + b"\n") * (N // 500), Format.NDJSON),
    (b"[" + b"[]," * N + b"0]", Format.JSON),
    (b"[{" + b",".join(b'"%d":1' % place for place in range(N // 10)) + b"}]", Format.JSON),
    (b"[" + b"} nul" * N, Format.JSON),
    (b"[" + (b"}" + b" " * 1_000) * (N // 1_000), Format.JSON),
    (b"sensor_id,temperature\n" + b'"' * N, Format.CSV),
    (b"sensor_id,temperature\n" + b'"\n' * N, Format.CSV),
    (b"sensor_id,temperature\n" + b'"x\n' * N, Format.CSV),
    (b"sensor_id,temperature\n" + b'a,"' + b'""' * N + b"\n" + b'a,"x\n' * 1_000, Format.CSV),
    (b"sensor_id,temperature\n" + b"\r" * N, Format.CSV),
    (b"sensor_id,temperature\n" + b" \n" * N, Format.CSV),
    (b"sensor_id," + b",".join(b"%d" % place for place in range(N // 10)) + b"\na\na\n", Format.CSV),
    (b"sensor_id,time,temperature\n" + b"".join(b"a,noon%d,1\n" % place for place in range(N // 10)), Format.CSV),
]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(("body", "form"), HOSTILE, ids=lambda value: f"{value!r:.40}")
def test_the_time_taken_grows_with_the_length_whatever_the_body_is(body: bytes, form: Format) -> None:
    """None of these bodies takes more than 0.4 s. A quadratic decoder would take minutes."""
    started = time.process_time()
    with suppress(*REFUSALS):
        decode(body, form)
    assert time.process_time() - started < 5


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("body", "form"),
    [
        (csv([GOOD] * 20) + b'"x,1\n' + csv([GOOD] * 20), Format.CSV),
        (ndjson([GOOD] * 20) + b"{\n\n" + ndjson([GOOD] * 21), Format.NDJSON),
    ],
)
def test_too_many_rows_are_counted_where_some_are_bad(body: bytes, form: Format) -> None:
    with pytest.raises(TooManyRows, match="42 readings"):
        decode(body, form, max_rows=20)
    assert len(rows_of(decode(body, form, max_rows=42))) == 40 + (form is Format.NDJSON)


def test_a_body_that_is_longer_than_arrow_counts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.ingest.decode.readings.MAX_BODY_BYTES", 10)
    with pytest.raises(BodyTooLarge):
        decode(json_array([GOOD]), Format.JSON)


def test_the_rows_of_the_batch_are_known_by_their_number_in_the_body() -> None:
    body = json_array([GOOD, {"sensor_id": ""}, GOOD, GOOD | {"temperature": "warm"}, GOOD])
    assert decode(body, Format.JSON).rows.to_pylist() == [1, 3, 5]
    assert decode(json_array([GOOD, GOOD]), Format.JSON).rows.to_pylist() == [1, 2]


@pytest.mark.parametrize("form", [Format.JSON, Format.NDJSON, Format.CSV])
def test_where_a_time_is_required_a_reading_without_one_is_refused(form: Format) -> None:
    rows = [GOOD, GOOD | {"time": None}, {name: value for name, value in GOOD.items() if name != "time"}]
    bodies = {Format.JSON: json_array(rows), Format.NDJSON: ndjson(rows), Format.CSV: csv(rows)}
    decoded = decode(bodies[form], form, is_time_required=True)
    assert [(fault.row, fault.column) for fault in decoded.errors] == [(2, "time"), (3, "time")]
    assert {fault.reason for fault in decoded.errors} == {"time is missing"}


TIME_BY_ANOTHER_NAME = [{"sensor_id": "a", "timestamp": "2023-07-12T14:00:00Z", "temperature": 1.0}] * 2
FORMATS_OF_ROWS = {
    "JSON": (Format.JSON, json_array),
    "JSON columns": (
        Format.JSON,
        lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode(),
    ),
    "NDJSON": (Format.NDJSON, ndjson),
    "CSV": (Format.CSV, lambda rows: csv(rows, list(rows[0]))),
    "Arrow": (Format.ARROW_STREAM, lambda rows: arrow_stream(pa.Table.from_pylist(rows))),
    "Parquet": (Format.PARQUET, lambda rows: parquet(pa.Table.from_pylist(rows))),
}


@pytest.mark.parametrize(("form", "write"), FORMATS_OF_ROWS.values(), ids=FORMATS_OF_ROWS)
def test_time_by_another_name(form: Format, write: Callable[[object], bytes]) -> None:
    """With a column that looks like a time, a backfill is refused, and other answers have a hint."""
    body = write(TIME_BY_ANOTHER_NAME)
    for is_backfill in (True, False):
        with pytest.raises(MalformedBody, match="The column 'timestamp' looks like it: rename it to time"):
            decode(body, form, is_backfill=is_backfill, is_time_required=not is_backfill)
    decoded = decode(body, form)
    assert [row[1] for row in rows_of(decoded)] == [T0_US, T0_US]
    assert decoded.hints == [
        "The column 'timestamp' looks like a time but is ignored: rename it to time. "
        "Readings without a time got their time of arrival."
    ]


def test_row_with_its_time_by_another_name() -> None:
    """A row whose time has another name is rejected alone, with its own reason."""
    decoded = decode(ndjson([GOOD, *TIME_BY_ANOTHER_NAME]), Format.NDJSON, is_backfill=True)
    assert places(decoded) == [(2, "time"), (3, "time")]
    assert decoded.errors[0].reason == "time is missing: a column 'timestamp' is not read as one"
    assert decode(ndjson([GOOD | {"timestamp": "x"}]), Format.NDJSON, is_backfill=True).hints == ()


@pytest.mark.parametrize(("form", "write"), FORMATS_OF_ROWS.values(), ids=FORMATS_OF_ROWS)
@pytest.mark.parametrize("sent", [20230712, 20230712143000, 45119.60417, 2023])
def test_implausible_time_in_every_format(form: Format, write: Callable[[object], bytes], sent: float) -> None:
    """A number that looks like something else is refused by name, also among good ones."""
    rows = [{"sensor_id": "a", "time": time, "temperature": 1.0} for time in (type(sent)(1_689_172_245), sent)]
    [fault] = decode(write(rows), form, rules(window=ANY_TIME)).errors
    assert (fault.row, fault.column) == (2, "time")
    assert "looks like" in fault.reason


@pytest.mark.parametrize(
    "name",
    [
        *("timestamp", "Timestamp", "@timestamp", "ts", "Time", "TIME", "_time", "datetime", "Date Time", "date"),
        *("timestamp_ms", "Timestamp (UTC)", "unix_time", "epoch", "time_recorded", "created_at", "measured_at", "utc"),
    ],
)
def test_column_like_time(name: str) -> None:
    """The usual names are known, however they are written."""
    assert columns_like_time(["battery", name]) == [name]


def test_columns_unlike_time() -> None:
    """Names that only sound alike are none, nor is the right one."""
    assert not columns_like_time(["time", "uptime", "runtime", "timezone", "update", "timeout", "battery", "dts", ""])


@pytest.mark.parametrize(("form", "write"), FORMATS_OF_ROWS.values(), ids=FORMATS_OF_ROWS)
@pytest.mark.parametrize("way", WAYS)
def test_nan_is_no_value(way: str, form: Format, write: Callable[[object], bytes]) -> None:
    """One NaN costs a row neither its other values nor itself, and alone it is a row without any."""
    nan = float("nan")
    rows = [
        {"sensor_id": "a", "temperature": nan, "humidity": 1.5},
        {"sensor_id": "b", "temperature": 2.5, "humidity": nan},
        {"sensor_id": "c", "temperature": nan, "humidity": nan},
    ]
    with arrow_from(*WAYS[way]):
        decoded = decode(write(rows), form)
    assert rows_of(decoded) == [("a", T0_US, None, 1.5, None), ("b", T0_US, 2.5, None, None)]
    assert [(fault.row, fault.column, fault.reason) for fault in decoded.errors] == [
        (3, None, "one of temperature, humidity, pressure should be there")
    ]


@pytest.mark.parametrize("text", ["", "NA", "N/A", "#N/A", "None", "NaN", "NAN", "-nan", "null"])
def test_mark_for_a_missing_value(text: str) -> None:
    """Usual marks for a missing value are missing values, as text in JSON and as CSV fields."""
    row = {"sensor_id": "a", "temperature": text, "humidity": 1.5}
    for form, body in (
        (Format.JSON, json_array([row])),
        (Format.NDJSON, ndjson([row])),
        (Format.CSV, csv([row], list(row))),
        (Format.CSV, csv([row] * 200, list(row))),
    ):
        decoded = decode(body, form)
        assert (rows_of(decoded)[0], decoded.rejected) == (("a", T0_US, None, 1.5, None), 0)


@pytest.mark.usefixtures("each_way")
@given(st.lists(any_rows, max_size=12), st.sets(st.integers(1, 12)), st.integers(1, 3))
@examples(50)
def test_only_some_rows(sent: list[dict[str, object]], wanted: set[int], max_chunks: int) -> None:
    """Wanted rows are decoded as they would be alone, and the others are neither stored nor rejected."""
    held_to = rules(max_chunks=max_chunks)
    only = [number for number in range(1, len(sent) + 1) if number in wanted]
    alone = decode(ndjson([sent[number - 1] for number in only]), Format.NDJSON, held_to)
    decoded = decode(ndjson(sent), Format.NDJSON, held_to, only_rows=pa.array(sorted(wanted), pa.int64()))
    assert repr(rows_of(decoded)) == repr(rows_of(alone))
    assert decoded.rejected == alone.rejected
    assert decoded.rows.to_pylist() == [only[number - 1] for number in alone.rows.to_pylist()]
    assert decoded.rejected_rows.to_pylist() == [only[number - 1] for number in alone.rejected_rows.to_pylist()]
    assert [fault.row for fault in decoded.errors] == decoded.rejected_rows.to_pylist()


@pytest.mark.parametrize(
    ("times", "window", "is_wanted"),
    [
        (["2023-07-12T14:00:00Z"], WINDOW, False),
        (["2023-07-12T14:00:00Z", "2023-05-01"], WINDOW, True),
        (["2023-05-01"], WINDOW.for_backfill(), False),
        (["2023-07-12T15:00:00Z"], WINDOW, False),
        (["2023-05-01"], TimeWindow.of(past_days=30, future_minutes=10, kept_days=40), False),
        (["2023-06-05"], TimeWindow.of(past_days=30, future_minutes=10, kept_days=40), True),
    ],
)
def test_backfill_is_wanted_where_it_would_help(times: list[str], window: TimeWindow, is_wanted: bool) -> None:
    """Backfill is not suggested for times that it would reject too: ahead, or older than the retention."""
    rows = [GOOD | {"time": time} for time in times]
    assert decode(ndjson(rows), Format.NDJSON, rules(window=window)).is_backfill_wanted is is_wanted
