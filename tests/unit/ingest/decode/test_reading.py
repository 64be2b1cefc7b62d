"""One reading as JSON is read exactly, or refused with every fault named, whatever the bytes are."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidReading
from app.ingest.batch import Reading
from app.ingest.decode.reading import ReadingBody, decode_reading
from app.ingest.decode.timestamps import TimeWindow
from app.web import error_responses
from tests.support.samples import SOURCE, T0_US, measures, names

WINDOW = TimeWindow.of(past_days=30, future_minutes=10)
ANY_TIME = TimeWindow.of(past_days=0, future_minutes=0)
TAKEN = Reading(T0_US, "greenhouse-1", 23.5, 48.2, 1013.2, SOURCE)
FIELDS = {"temperature": b"23.5", "humidity": b"48.2", "pressure": b"1013.2", "sensor_id": b'"greenhouse-1"'}


def body(without: str | None = None, **raw: bytes) -> bytes:
    """Return a good body with other JSON for these fields."""
    fields = {name: text for name, text in (FIELDS | raw).items() if name != without}
    return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), text) for name, text in fields.items())


def decode(sent: bytes, window: TimeWindow = WINDOW) -> Reading:
    return decode_reading(sent, source=SOURCE, window=window, now_us=T0_US)


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (body(), TAKEN),
        (body(temperature=b'"23.5"', humidity=b'"48.2"', pressure=b'"1013.2"'), TAKEN),
        (body(temperature=b"-40"), TAKEN._replace(temperature=-40.0)),
        (body(temperature=b"2.35e1"), TAKEN),
        (body(pressure=b"1e-300"), TAKEN._replace(pressure=1e-300)),
        (body(location=b'{"room": [1, 2]}', id=b"7", client_ip=b'"203.0.113.9"'), TAKEN),
        (body(sensor_id=b'"' + b"x" * 255 + b'"'), TAKEN._replace(sensor="x" * 255)),
        (body(sensor_id=b'" caf\xc3\xa9 \\ud83c\\udf31 "'), TAKEN._replace(sensor=" café 🌱 ")),
        (body(time=b"null"), TAKEN),
        (body(time=b'"2023-07-12T14:30:44Z"'), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b'"2023-07-12T16:30:44+02:00"'), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b'"2023-07-12T14:30:44"'), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b"1689172244"), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b"1689172244.5"), TAKEN._replace(time_us=T0_US - 500_000)),
        (body(time=b"1689172244000"), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b"1689172244000000"), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b"1689172244000000000"), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (body(time=b'"1689172244000"'), TAKEN._replace(time_us=T0_US - 1_000_000)),
        (b' \r\n\t{"temperature":1,' + body()[1:], TAKEN),
        (b"\xef\xbb\xbf" + body(), TAKEN),
        (b"\xef\xbb\xbf" + body(temperature=b'"23.5"'), TAKEN),
    ],
)
def test_a_reading_is_taken(sent: bytes, taken: Reading) -> None:
    """Numbers also in quotes, unknown fields ignored, and of a field that comes twice the last, as in every JSON."""
    assert decode(sent) == taken


@pytest.mark.parametrize(
    ("sent", "loc", "type_"),
    [
        *((body(without=field), ("body", field), "missing") for field in FIELDS),
        (body(temperature=b"true"), ("body", "temperature"), "value_error"),
        (body(humidity=b"null"), ("body", "humidity"), "float_type"),
        (body(humidity=b"[48.2]"), ("body", "humidity"), "float_type"),
        (body(humidity=b'"damp"'), ("body", "humidity"), "float_parsing"),
        (body(humidity=b'""'), ("body", "humidity"), "float_parsing"),
        (body(pressure=b"NaN"), ("body", "pressure"), "finite_number"),
        (body(pressure=b"Infinity"), ("body", "pressure"), "finite_number"),
        (body(pressure=b"-Infinity"), ("body", "pressure"), "finite_number"),
        (body(pressure=b"1e999"), ("body", "pressure"), "finite_number"),
        (body(pressure=b'"nan"'), ("body", "pressure"), "finite_number"),
        (body(pressure=b'"1e999"'), ("body", "pressure"), "finite_number"),
        (body(pressure=b"1" + 400 * b"0"), ("body", "pressure"), "float_type"),
        (body(pressure=100 * b"[" + 100 * b"]"), ("body", "pressure"), "float_type"),
        (body(sensor_id=b'""'), ("body", "sensor_id"), "string_too_short"),
        (body(sensor_id=b'" \\t\\u00a0"'), ("body", "sensor_id"), "value_error"),
        (body(sensor_id=b'"' + b"x" * 256 + b'"'), ("body", "sensor_id"), "string_too_long"),
        (body(sensor_id=b'"a\\u0000b"'), ("body", "sensor_id"), "value_error"),
        (body(sensor_id=b"7"), ("body", "sensor_id"), "string_type"),
        (body(sensor_id=b"99999999999999999999"), ("body", "sensor_id"), "string_type"),
        (body(sensor_id=b"null"), ("body", "sensor_id"), "string_type"),
        (body(time=b"true"), ("body", "time"), "value_error"),
        (body(time=b"{}"), ("body", "time"), "value_error"),
        (body(time=b'"yesterday"'), ("body", "time"), "value_error"),
        (body(time=b"NaN"), ("body", "time"), "value_error"),
        (body(time=b"1e999"), ("body", "time"), "value_error"),
        (body(time=b"1" + 400 * b"0"), ("body", "time"), "value_error"),
        (body(time=b'"1%b"' % (400 * b"0")), ("body", "time"), "value_error"),
        (body(time=b'"1850-01-01"'), ("body", "time"), "value_error"),
        (body(time=b'"2023-06-12T14:30:44Z"'), ("body", "time"), "time_outside_window"),
        (body(time=b'"2023-07-12T14:40:46Z"'), ("body", "time"), "time_outside_window"),
        (body(sensor_id=b'"\\ud800"'), ("body",), "json_invalid"),
        (body(sensor_id=b'"\xed\xa0\x80"'), ("body",), "json_invalid"),
        (body(sensor_id=b'"caf\xe9"'), ("body",), "json_invalid"),
        (body(location=1_000 * b"[" + 1_000 * b"]"), ("body",), "json_invalid"),
        (body(location=b"1" + 5_000 * b"0"), ("body",), "json_invalid"),
        (body() + b"}", ("body",), "json_invalid"),
        (body()[:-1], ("body",), "json_invalid"),
        (b"", ("body",), "json_invalid"),
        (b"\xff\xfe", ("body",), "json_invalid"),
        (b"temperature=23.5", ("body",), "json_invalid"),
        (b"[%b]" % body(), ("body",), "model_type"),
        (b"null", ("body",), "model_type"),
        (b"1" + 400 * b"0", ("body",), "model_type"),
        (b"[" * 100_000, ("body",), "json_invalid"),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_what_is_no_reading_is_refused_in_the_form_of_fastapi(sent: bytes, loc: tuple[str, ...], type_: str) -> None:
    with pytest.raises(InvalidReading) as refusal:
        decode(sent)
    status, _, answer = error_responses.answer(refusal.value)
    [fault] = orjson.loads(answer)["detail"]
    assert (status, tuple(fault["loc"]), fault["type"]) == (422, loc, type_)
    assert fault.keys() == {"type", "loc", "msg", "input"}
    assert fault["msg"]


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "sent", ["2023-06-12T14:30:44Z", 1686580244, 1686580244.5, "1686580244", 1686580244000, "2023-07-12T14:40:46+00:00"]
)
def test_time_outside_the_window_is_shown_as_it_was_sent(sent: object, before: bytes) -> None:
    """A message shows a time outside the window as it was sent, not as a number."""
    with pytest.raises(InvalidReading) as refusal:
        decode(before + body(time=json.dumps(sent).encode()))
    assert refusal.value.details[0]["input"] == sent


def test_every_fault_is_named() -> None:
    with pytest.raises(InvalidReading) as refusal:
        decode(b'{"temperature": "warm", "sensor_id": "", "pressure": 1}')
    assert [fault["loc"] for fault in refusal.value.details] == [
        ("body", "temperature"),
        ("body", "humidity"),
        ("body", "sensor_id"),
    ]


@given(measures, measures, measures, names, st.booleans())
def test_every_number_and_every_name_is_taken_to_the_last_bit(
    temperature: float, humidity: float, pressure: float, sensor: str, ascii_only: bool
) -> None:
    """Every number and name is read to the last bit, as the standard library's decoder reads it."""
    sent = {"temperature": temperature, "humidity": humidity, "pressure": pressure, "sensor_id": sensor}
    taken = decode(json.dumps(sent, ensure_ascii=ascii_only).encode())
    assert repr(taken) == repr(Reading(T0_US, sensor, temperature, humidity, pressure, SOURCE))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from([*FIELDS, "time", "other"]), anything).map(lambda sent: json.dumps(sent).encode())
    | st.binary()
    | st.binary().map(lambda text: body(sensor_id=b'"%b"' % text))
)
def test_whatever_the_bytes_are_they_are_a_reading_or_an_answer_in_json(sent: bytes) -> None:
    try:
        decode(sent, ANY_TIME)
    except InvalidReading as error:
        status, _, answer = error_responses.answer(error)
        assert status == 422
        assert all(fault["loc"][0] == "body" for fault in orjson.loads(answer)["detail"])


numbers = (
    st.floats().map(json.dumps)
    | st.integers().map(str)
    | st.integers(-(2**70), 2**70).map(str)
    | st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
)
values = numbers | anything.map(json.dumps) | st.text().map(json.dumps) | st.just("[" * 200 + "]" * 200)
fields = st.tuples(st.sampled_from([*FIELDS, "time", "other"]), values)
complete = st.tuples(*(st.tuples(st.just(name), numbers) for name in ("temperature", "humidity", "pressure")))
named = st.tuples(st.just("sensor_id"), (names | st.text()).map(json.dumps))
timed = st.tuples(st.just("time"), numbers | st.datetimes().map(lambda time: json.dumps(time.isoformat())))


@given(
    st.lists(fields)
    | st.builds(lambda three, name, more: [*three, name, *more], complete, named, st.lists(timed | fields, max_size=2)),
    st.sampled_from(["%s", " %s\n", "\ufeff%s", "%s,", "[%s]"]),
)
def test_a_body_is_judged_as_the_documented_model_judges_it(sent: list[tuple[str, str]], around: str) -> None:
    """A body gets the verdict of the documented model, even with repeated fields, long numbers and deep values."""
    inner = ", ".join(f'"{name}": {value}' for name, value in sent)
    text = (around % f"{{{inner}}}").encode(errors="surrogatepass")
    try:
        expected = ReadingBody.model_validate_json(text.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        with pytest.raises(InvalidReading):
            decode(text, ANY_TIME)
    else:
        time_us = T0_US if expected.time is None else expected.time
        measured = (expected.temperature, expected.humidity, expected.pressure)
        assert repr(decode(text, ANY_TIME)) == repr(Reading(time_us, expected.sensor_id, *measured, SOURCE))


@pytest.mark.parametrize(
    "number", [b"-0", b"-0.0", b"0", b"9007199254740993", b"18446744073709551615", b"1e308", b"5e-324"]
)
def test_numbers_at_the_edges_are_judged_alike(number: bytes) -> None:
    sent = body(temperature=number)
    assert repr(decode(sent).temperature) == repr(ReadingBody.model_validate_json(sent).temperature)
