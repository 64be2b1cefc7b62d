"""NDJSON of one shape, as one program writes it, is read as a CSV. The other ways read all else."""

import json

import pytest

from app.ingest.decode.jsons import ONE_SHAPE_PAYS_FROM_BYTES
from app.ingest.decode.uniform import columns_of_one_shape
from tests.support.bodies import iso
from tests.support.samples import T0_US

ROW = '{"sensor_id":"a","time":1,"temperature":1.5}'


def columns(*lines: str) -> dict[str, list[object]] | None:
    """Return the columns that are not full of null, or None if the other ways must decode the body."""
    found = columns_of_one_shape("\n".join(lines).encode(), max_rows=len(lines))
    if found is None:
        return None
    return {name: each.to_pylist() for name, each in found.items() if each.null_count < len(each)}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("time", [T0_US, T0_US / 1e6, iso(T0_US), None])
def test_what_programs_write_is_of_one_shape(separators: tuple[str, str], time: object) -> None:
    rows = [
        {"time": time, "sensor_id": f"aa:bb:{place:03x}", "pressure": place / 4, "humidity": None, "temperature": place}
        for place in range(2_048)
    ]
    lines = [json.dumps(row, separators=separators) for row in rows]
    assert sum(map(len, lines)) >= ONE_SHAPE_PAYS_FROM_BYTES
    assert columns(*lines) == {
        "sensor_id": [row["sensor_id"] for row in rows],
        **({} if time is None else {"time": [time] * 2_048}),
        "temperature": list(range(2_048)),
        "pressure": [place / 4 for place in range(2_048)],
    }


@pytest.mark.parametrize("name", ["", " a ", "null", "NaN", "a:b", "café 🌱", "'", "\x7f", "\u2028"])
def test_a_name_is_itself(name: str) -> None:
    assert columns(f'{{"sensor_id":"{name}"}}', '{"sensor_id":null}') == {"sensor_id": [name, None]}


def test_more_rows_than_may_be_are_not_read() -> None:
    """Their columns could be much larger than the body."""
    body = "".join([ROW + "\n"] * 9).encode()
    assert columns_of_one_shape(body, max_rows=9) is not None
    assert columns_of_one_shape(body, max_rows=8) is None


def test_null_is_no_text_and_text_is_not_null() -> None:
    found = columns(*(f'{{"sensor_id":"a","time":{time}}}' for time in ('"noon"', "null", '"null"', '""')))
    assert found == {"sensor_id": ["a"] * 4, "time": ["noon", None, "null", ""]}


def test_times_are_whole_unless_the_sample_has_one_that_is_not() -> None:
    whole, half = (f'{{"sensor_id":"a","time":{time}}}' for time in ("1", "1.5"))
    assert columns(whole, half, whole) == {"sensor_id": ["a"] * 3, "time": [1.0, 1.5, 1.0]}
    assert columns(*[whole] * 200) is not None
    assert columns(*[whole] * 200, half) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"sensor_id":"a","time":1}',
        '{"sensor_id":"a","temperature":1.5,"time":1}',
        '{"sensor_id":"a","time":1,"temperature":1.5,"temperature":1.5}',
        '{"sensor_id":"a","time":1,"temperature":1.5,"battery":3}',
        '{"sensor_id":"a","time":1,"humidity":1.5}',
        '{"sensor_id":"a","null":1,"temperature":1.5}',
        '{"sensor_id":"a","temperature":1,"time":1}',
        '{"sensor_id":"a", "time":1, "temperature":1.5}',
        ' {"sensor_id":"a","time":1,"temperature":1.5}',
        '{"sensor_id":"a","time":1,"temperature":1.5}\r',
        '{"sensor_id":7,"time":1,"temperature":1.5}',
        '{"sensor_id":"a,b","time":1,"temperature":1.5}',
        '{"sensor_id":"a}","time":1,"temperature":1.5}',
        '{"sensor_id":"a\\n","time":1,"temperature":1.5}',
        '{"sensor_id":"a\t","time":1,"temperature":1.5}',
        '{"sensor_id":"a\0","time":1,"temperature":1.5}',
        '{"sensor_id":"a","time":"1","temperature":1.5}',
        '{"sensor_id":"a","time":9223372036854775808,"temperature":1.5}',
        *(
            f'{{"sensor_id":"a","time":1,"temperature":{number}}}'
            for number in ("NaN", "true", '"1"', "01", "+1", ".5", "1.", "1e", "- 1", "0x1", "[1]", "nul", "")
        ),
        ROW + ROW,
        ROW[:-1],
        ROW[1:],
        "{}",
        "",
        "x",
    ],
)
def test_a_line_that_deviates_leaves_the_body_to_the_other_ways(line: str) -> None:
    """Whether it is in the sample or far behind it."""
    for before in (1, 100):
        assert columns(*[ROW] * before) is not None
        assert columns(*[ROW] * before, line, ROW) is None


@pytest.mark.parametrize(
    "line",
    [
        *("", "{}", "[]", "null", '{"temperature":1}', '{"sensor_id":"a","x":1}', '{"sensor_id":true}', "[" * 9_000),
        '{"sensor_id":"a","sensor_id":"a"}',
        '{"sensor_id":"a","time":[1]}',
        f'{{"sensor_id":"{"x" * 5_000}"}}',
        '{"sensor_id": "a b", "time": 1}',
        '{"sensor_id" : "a"}',
    ],
)
def test_a_first_line_that_shows_no_shape_leaves_it_to_them_too(line: str) -> None:
    assert columns(line, line) is None
