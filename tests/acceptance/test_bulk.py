"""POST /api/readings, as a client uses it."""

import asyncio
import csv
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from app.imports.command import REJECTED_STATUS
from tests.support import bodies
from tests.support.bulk import CODECS, FORMATS, NDJSON, PATH, Site, encoded, row_of, rows, scalar, site
from tests.support.clients import connection_to, listen, receive
from tests.support.databases import new_database
from tests.support.prometheus import adds_up
from tests.support.proxy import Fault, faulty_proxy
from tests.support.server import API_KEY, API_KEY_WS, eventually, run_command
from tests.support.weather import weather_file

NOW = datetime.now(UTC).replace(microsecond=123_456)


@pytest.fixture(scope="module")
def shared(embedded_admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a server with default settings. Each test has its own sensors."""
    with new_database(embedded_admin_url) as url, site(tmp_path_factory.mktemp("shared"), url) as shared:
        yield shared


def reading(sensor: str, *, ago: timedelta = timedelta(0), **fields: object) -> dict[str, object]:
    """Return a good reading."""
    return {"sensor_id": sensor, "time": (NOW - ago).isoformat(), "temperature": 21.5, **fields}


def some_readings(prefix: str, count: int) -> list[dict[str, object]]:
    """Return readings of several sensors and days, in which each of the metrics is sometimes missing."""
    return [
        {
            "sensor_id": f"{prefix}sensor {number % 7}, «é»",
            "time": (NOW - timedelta(minutes=7 * number, microseconds=number)).isoformat(),
            "temperature": number / 7 if number % 3 else None,
            "humidity": -number * 1e-5 if number % 4 else None,
            "pressure": 1_000.0 + number,
        }
        for number in range(count)
    ]


def test_the_same_readings_are_the_same_rows_whatever_they_are_sent_as(database: str, tmp_path: Path) -> None:
    with site(tmp_path, database) as there:
        for format_ in FORMATS:
            for codec in CODECS:
                sent = some_readings(f"{format_} {codec} ", 300)
                body, headers = encoded(sent, format_, codec)
                answer = there.client.post(PATH, content=body, headers=headers)
                assert (answer.status_code, answer.json()) == (201, {"stored": 300})
                assert Counter(rows(database, f"{format_} {codec} %")) == Counter(map(row_of, sent))
    assert scalar(database, "SELECT count(DISTINCT id) FROM readings") == 300 * len(FORMATS) * len(CODECS)


WEATHER_ROWS = 26_114
"""The file has 26,115 rows. One of them has none of the three metrics."""
FINGERPRINTS = """
SELECT split_part(s.name, ' ', 1), count(*), md5(string_agg(concat_ws(',',
           split_part(s.name, ' ', 2), extract(epoch FROM r.time),
           coalesce(r.temperature, 'NaN'), coalesce(r.humidity, 'NaN'), coalesce(r.pressure, 'NaN')
       ), ';' ORDER BY s.name, r.time, r.temperature, r.humidity, r.pressure))
FROM readings r JOIN sensors s ON s.id = r.sensor_id GROUP BY 1
"""
"""For each first word of the sensors' names: how many rows there are, and what stands for all that is in them."""


def weather(prefix: str) -> list[dict[str, object]]:
    """Return all of the real input with its gaps, as an import would read it, but with other names."""

    def number(text: str) -> float | None:
        return None if text in ("", "NA") else float(text)

    with weather_file().open() as file:
        return [
            {
                "sensor_id": f"{prefix} {row['origin']}",
                "time": row["time_hour"],
                "temperature": None if (degrees := number(row["temp"])) is None else (degrees - 32) * 5 / 9,
                "humidity": number(row["humid"]),
                "pressure": number(row["pressure"]),
            }
            for row in csv.DictReader(file)
        ]


def test_a_year_of_weather_is_the_same_rows_by_every_format_and_by_import(database: str, tmp_path: Path) -> None:
    with site(tmp_path, database) as there:
        for format_, codec in zip(FORMATS, itertools.cycle(CODECS), strict=False):
            sent = weather(format_)
            stored = 0
            for quarter in range(4):  # a request may bring 100 days
                part = [row for row in sent if (int(str(row["time"])[5:7]) - 1) // 3 == quarter]
                body, headers = encoded(part, format_, codec)
                answer = there.client.post(f"{PATH}?backfill=true", content=body, headers=headers)
                said = answer.json()
                assert (answer.status_code, said.get("rejected", 0)) in ((201, 0), (422, 1)), answer.text
                stored += said["stored"]
            assert stored == WEATHER_ROWS
            if format_ == "array":
                expected = [row for row in map(row_of, sent) if row[2:] != (None, None, None)]
                assert Counter(rows(database)) == Counter(expected)
        (tmp_path / "weather.csv").write_text(
            re.sub(r"^(EWR|JFK|LGA),", r"import \1,", weather_file().read_text(), flags=re.M)
        )
        columns = (
            "--sensor",
            "origin",
            "--time",
            "time_hour",
            "--column",
            "temperature=temp",
            "--column",
            "humidity=humid",
        )
        arguments = (*columns, "--fahrenheit", "temperature")
        for said in ("26,114 readings stored, 1 rejected", "0 readings stored, 26,114 were imported before"):
            status, output = run_command(tmp_path, "import", "weather.csv", *arguments, DATABASE_URL=database)
            assert (status, said in output) == (REJECTED_STATUS, True), output
    with psycopg.connect(database) as connection:
        found = connection.execute(FINGERPRINTS).fetchall()
    assert {name for name, *_ in found} == {*FORMATS, "import"}
    assert {count for _, count, _ in found} == {WEATHER_ROWS}
    assert len({fingerprint for *_, fingerprint in found}) == 1
    assert scalar(database, "SELECT count(DISTINCT id) FROM readings") == WEATHER_ROWS * (len(FORMATS) + 1)


def test_a_reading_alone_is_taken_and_one_without_a_time_is_of_now(shared: Site) -> None:
    before = datetime.now(UTC)
    answer = shared.post(b'{"sensor_id": "alone", "humidity": 40}', "application/json; charset=utf-8")
    assert (answer.status_code, answer.json()) == (201, {"stored": 1})
    ((_, stored_at, *metrics),) = rows(shared.url, "alone")
    assert before <= stored_at <= datetime.now(UTC)
    assert metrics == [None, 40, None]


@pytest.mark.parametrize("query", ["", "partial=false", "partial=ok", "backfill=true"])
@pytest.mark.parametrize("headers", [{}, {"Prefer": "respond-async"}, {"Idempotency-Key": "nothing"}], ids=str)
def test_no_readings(shared: Site, query: str, headers: dict[str, str]) -> None:
    """A body without a single reading is refused in every format, and leaves its key free."""
    empty = [encoded([], format_, "identity") for format_ in FORMATS]
    empty += [(body, {"Content-Type": NDJSON}) for body in (b"", b"\n \r\n\n")]
    empty += [(b"", {"Content-Type": "application/json"}), (b"", {"Content-Type": "text/csv"})]
    for body, of_format in empty:
        answer = shared.client.post(f"{PATH}?{query}", content=body, headers={**of_format, **headers})
        assert answer.status_code == 422
        assert re.search("no reading|is empty", answer.json()["detail"])
    assert shared.send(reading("something"), query=query, **{"Idempotency_Key": query or "none"}).status_code == 201


def test_partial_ok(shared: Site) -> None:
    """With partial=ok, a sender that repeats every 4xx stores the good readings once and learns of the bad ones."""
    sent = [*(reading("repeated", temperature=number) for number in range(10)), reading("repeated", temperature="x")]
    for _ in range(5):
        answer = shared.send(*sent, query="partial=ok")
        if answer.status_code < 300:
            break
    said = answer.json()
    assert (answer.status_code, said["stored"], said["rejected"], said["errors"][0]["row"]) == (200, 10, 1, 11)
    assert len(rows(shared.url, "repeated")) == 10
    assert shared.send(sent[0], query="partial=ok").status_code == 201
    none = shared.send(sent[-1], query="partial=ok")
    assert (none.status_code, none.json()["stored"], none.json()["rejected"]) == (200, 0, 1)
    accepted = shared.send(*sent, query="partial=ok", Prefer="respond-async")
    assert (accepted.status_code, accepted.json()["accepted"], accepted.json()["rejected"]) == (202, 10, 1)
    first, again = (shared.send(*sent, query="partial=ok", Idempotency_Key="partial ok") for _ in range(2))
    assert (first.status_code, first.content) == (again.status_code, again.content)


def test_the_good_are_stored_and_the_bad_are_named(shared: Site) -> None:
    sent = [
        reading("partial"),
        reading("partial", temperature="warm"),
        reading("partial", ago=timedelta(hours=1)),
        reading(""),
        reading("partial", temperature=None),
        reading("partial", ago=timedelta(hours=2), time="yesterday"),
    ]
    answer = shared.send(*sent)
    said = answer.json()
    assert (answer.status_code, said["stored"], said["rejected"]) == (422, 2, 4)
    assert [(fault["row"], fault["column"], fault["value"]) for fault in said["errors"]] == [
        *((2, "temperature", "warm"), (4, "sensor_id", ""), (5, None, None), (6, "time", "yesterday"))
    ]
    assert all(fault["reason"] for fault in said["errors"])
    assert Counter(rows(shared.url, "partial")) == Counter([row_of(sent[0]), row_of(sent[2])])


def test_only_the_first_hundred_of_the_bad_are_named_and_all_are_counted(shared: Site) -> None:
    said = shared.send(*[reading("many bad", temperature="x")] * 150, reading("many bad")).json()
    assert (said["stored"], said["rejected"], len(said["errors"])) == (1, 150, 100)


def test_with_partial_false_one_bad_reading_keeps_all_out(shared: Site) -> None:
    answer = shared.send(reading("whole"), reading("whole", humidity="wet"), query="partial=false")
    said = answer.json()
    assert (answer.status_code, said["stored"], said["rejected"]) == (422, 0, 1)
    assert [fault["row"] for fault in said["errors"]] == [2]
    assert not rows(shared.url, "whole")
    answer = shared.send(reading("whole"), reading("whole"), query="partial=false")
    assert (answer.status_code, answer.json()) == (201, {"stored": 2})


def test_columns_that_are_not_known_are_named_with_either_status(shared: Site) -> None:
    sent = reading("unknown columns", battery=3.7, firmware="1.2")
    answer = shared.send(sent)
    assert (answer.status_code, answer.json()) == (201, {"stored": 1, "unknown_columns": ["battery", "firmware"]})
    answer = shared.send(sent, {**sent, "temperature": "x"})
    assert answer.status_code == 422
    assert answer.json()["unknown_columns"] == ["battery", "firmware"]


def test_a_number_is_of_the_unit_that_the_query_says_or_of_that_which_its_magnitude_tells(shared: Site) -> None:
    second = int(NOW.timestamp())
    for unit, factor in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)):
        for query in (f"precision={unit}", "precision=auto", ""):
            answer = shared.send(reading(f"unit {unit} {query}", time=second * factor), query=query)
            assert answer.status_code == 201
    assert {time_ for _, time_, *_ in rows(shared.url, "unit %")} == {datetime.fromtimestamp(second, UTC)}
    # 2,600 s after 1970 in ms: by magnitude it would be seconds, and 43 minutes after 1970 as well.
    assert shared.send(reading("early", time=2_600_000), query="precision=ms&backfill=true").status_code == 201
    ((_, stored_at, *_),) = rows(shared.url, "early")
    assert stored_at == datetime(1970, 1, 1, 0, 43, 20, tzinfo=UTC)


def test_old_readings_want_backfill_and_none_may_come_from_the_future(shared: Site) -> None:
    old, ahead = reading("old", ago=timedelta(days=31)), reading("ahead", ago=timedelta(hours=-1))
    for query in ("", "backfill=false"):
        answer = shared.send(old, query=query)
        assert (answer.status_code, answer.json()["errors"][0]["column"]) == (422, "time")
        assert "30 days" in answer.json()["errors"][0]["reason"]
    assert shared.send(old, query="backfill=true").json() == {"stored": 1}
    assert shared.send(ahead, query="backfill=true").json()["errors"][0]["column"] == "time"
    assert len(rows(shared.url, "old")) == 1
    assert not rows(shared.url, "ahead")


def test_time_by_another_name(shared: Site) -> None:
    """No reading of long ago is stored with the time of arrival without a hint."""
    sent = {"sensor_id": "timestamp", "timestamp": "2013-01-01T00:00:00Z", "temperature": 1}
    refused = shared.send(sent, query="backfill=true")
    assert (refused.status_code, "'timestamp'" in refused.json()["detail"]) == (422, True)
    assert not rows(shared.url, "timestamp")
    answer = shared.send(sent)
    assert (answer.status_code, answer.json()["stored"], answer.json()["unknown_columns"]) == (201, 1, ["timestamp"])
    assert "'timestamp' looks like a time but is ignored" in answer.json()["hints"][0]


@pytest.mark.parametrize("time_", [20230712, "20230712143000", 45119.60417, 848_000_000])
def test_number_that_is_no_time(shared: Site, time_: object) -> None:
    """A date in digits, a day of Excel and a second since 2000 are stored nowhere, by either route."""
    sent = {"sensor_id": "no time", "time": time_, "temperature": 1, "humidity": 2, "pressure": 3}
    bulk = shared.send(sent, query="backfill=true")
    assert (bulk.status_code, "looks like" in bulk.json()["errors"][0]["reason"]) == (422, True)
    single = shared.client.post(SINGLE, json=sent)
    assert (single.status_code, "looks like" in single.json()["detail"][0]["msg"]) == (422, True)
    assert not rows(shared.url, "no time")


def test_of_more_days_than_a_request_may_bring_the_newest_are_stored(shared: Site) -> None:
    sent = [reading("days", ago=timedelta(days=day)) for day in range(103)]
    answer = shared.send(*sent, query="backfill=true")
    said = answer.json()
    assert (answer.status_code, said["stored"], said["rejected"]) == (422, 100, 3)
    assert [fault["row"] for fault in said["errors"]] == [101, 102, 103]
    assert "import" in said["errors"][0]["reason"]
    assert Counter(rows(shared.url, "days")) == Counter(map(row_of, sent[:100]))


def test_as_many_readings_as_a_request_may_bring_and_one_more(shared: Site) -> None:
    line = b'{"sensor_id":"cap","humidity":1}\n'
    assert shared.post(line * 100_000).json() == {"stored": 100_000}
    answer = shared.post(line * 100_001)
    assert answer.status_code == 413
    assert "100,001 readings" in answer.json()["detail"]
    assert "100,000" in answer.json()["detail"]
    assert scalar(shared.url, "SELECT count(*) FROM data WHERE sensor_id = 'cap'") == 100_000


@pytest.mark.parametrize("expectation", [b"", b"Expect: 100-continue\r\n"])
def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read(shared: Site, expectation: bytes) -> None:
    assert _head_only(shared, b"Content-Length: 16777217\r\n" + expectation).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("key", "status"), [(b"wrong", 401), (API_KEY_WS.encode(), 403)])
def test_a_bad_key_is_refused_before_the_body_is_read(shared: Site, key: bytes, status: int) -> None:
    for headers in (b"Content-Length: 1000\r\nExpect: 100-continue\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert _head_only(shared, headers, key=key).startswith(b"HTTP/1.1 %d " % status)


def _head_only(there: Site, headers: bytes, *, key: bytes = API_KEY.encode()) -> bytes:
    """Return the answer to a request whose body is never sent."""
    with connection_to(there.server) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: text/csv\r\n%s\r\n"
            % (PATH.encode(), key, headers)
        )
        return connection.recv(65_536)


def test_a_chunked_body_is_taken_and_cut_off_where_it_is_too_large(shared: Site) -> None:
    body = bodies.ndjson([reading("chunked")] * 100)
    pieces = (body[place : place + 1_000] for place in range(0, len(body), 1_000))
    headers = {"Content-Type": NDJSON}
    assert shared.client.post(PATH, content=pieces, headers=headers).json() == {"stored": 100}
    endless = (b" " * 1_048_576 for _ in range(17))
    with suppress(httpx.WriteError):  # the server may close while it still is being sent to
        assert shared.client.post(PATH, content=endless, headers=headers).status_code == 413
    _holds_nothing(shared)


def test_what_inflates_too_far_is_413_and_what_is_cut_off_422(shared: Site) -> None:
    for codec in ("gzip", "zstd"):
        bomb = CODECS[codec](b" " * 80_000_000)
        answer = shared.post(bomb, Content_Encoding=codec)
        assert answer.status_code == 413
        assert "inflated" in answer.json()["detail"]
        whole = CODECS[codec](bodies.ndjson(some_readings("cut off", 100)))
        for body in (whole[:-9], whole[: len(whole) // 2], b"", b"no such thing"):
            answer = shared.post(body, Content_Encoding=codec)
            assert answer.status_code == 422
            assert codec in answer.json()["detail"]
    assert not rows(shared.url, "cut off%")
    _holds_nothing(shared)


def test_types_encodings_and_parameters_that_are_not_known_are_refused(shared: Site) -> None:
    body = bodies.ndjson([reading("refused")])
    for content_type in ("application/xml", "", "text/plain", "application/jsonl"):
        answer = shared.post(body, content_type)
        assert answer.status_code == 415
        assert "application/x-ndjson" in answer.json()["detail"]
    for encoding in ("br", "gzip, gzip", "deflate"):
        assert shared.post(body, Content_Encoding=encoding).status_code == 415
    for query in ("precison=s", "precision=h", "partial=perhaps", "partial=OK", "backfill=", "partial=true&dry=1"):
        answer = shared.post(body, query=query)
        assert answer.status_code == 422
        assert answer.json()["detail"]
    for key in ("", "x" * 256):
        answer = shared.post(body, Idempotency_Key=key)
        assert answer.status_code == 422
        assert "Idempotency-Key" in answer.json()["detail"]
    assert not rows(shared.url, "refused")


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/json", b"", "empty"),
        ("application/json", b"[{", "not JSON"),
        ("application/json", b"7", "a number"),
        ("application/json", b'{"sensor_id": ["a"], "temperature": [1, 2]}', "one length"),
        ("text/csv", b"", "header"),
        ("text/csv", b"time,temperature\n,1\n", "sensor_id"),
        ("text/csv", b"sensor_id;temperature\na;1\n", "commas"),
        ("application/vnd.apache.arrow.stream", b"ARROW1", "Arrow stream"),
        ("application/vnd.apache.parquet", b"PAR1", "Parquet"),
        ("application/json", '[{"sensor_id": "a"}]'.encode("utf-16"), "UTF-8"),
    ],
)
def test_a_body_that_cannot_be_read_is_422_and_says_what_to_do(
    shared: Site, content_type: str, body: bytes, said: str
) -> None:
    answer = shared.post(body, content_type)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_a_connection_cut_in_the_middle_of_a_body_leaves_no_reservation_behind(shared: Site) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: %s\r\n" % (
        *(PATH.encode(), API_KEY.encode(), NDJSON.encode()),
    )
    announced = head + b"Content-Length: 1000000\r\n\r\n" + b"{" * 1_000
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"{" * 1_000 + b"\r\n"
    for request in (announced, chunked):
        with connection_to(shared.server) as one, connection_to(shared.server) as two:
            for connection in (one, two):
                connection.sendall(request)
            eventually(partial(_holds, shared, 2 * 4_000))  # what has come counts, four times
        _holds_nothing(shared)


def _holds(there: Site, size_bytes: int) -> bool:
    return there.metrics()["sensorflow_buffer_bytes"] == size_bytes


def _holds_nothing(there: Site) -> None:
    """Return whether everything that was held is released."""
    eventually(partial(_holds, there, 0))
    assert adds_up(there.metrics())


def test_202_means_buffered_and_the_rows_are_there_soon(shared: Site) -> None:
    sent = some_readings("async ", 5_000)
    answer = shared.send(*sent, Prefer="respond-async")
    assert (answer.status_code, answer.json()) == (202, {"accepted": 5_000})
    assert answer.headers["Preference-Applied"] == "respond-async"
    eventually(lambda: len(rows(shared.url, "async sensor%")) == 5_000)
    assert Counter(rows(shared.url, "async sensor%")) == Counter(map(row_of, sent))


def test_respond_async_says_accepted_also_where_some_or_all_are_bad(shared: Site) -> None:
    good, bad = reading("async bad"), reading("async bad", temperature="x")
    for sent, query, accepted in (([good, bad], "", 1), ([bad], "", 0), ([good, bad], "partial=false", 0)):
        answer = shared.send(*sent, Prefer="respond-async", query=query)
        assert (answer.status_code, answer.json()["accepted"], answer.json()["rejected"]) == (422, accepted, 1)
    eventually(lambda: len(rows(shared.url, "async bad")) == 1)


def test_what_was_answered_202_survives_sigterm(embedded_database_url: str, tmp_path: Path) -> None:
    with (
        faulty_proxy(embedded_database_url) as proxy,
        site(tmp_path, embedded_database_url, through=proxy.url) as there,
    ):
        proxy.hang()
        body = bodies.ndjson(some_readings("drained ", 4_000))
        answers = [there.post(body, Prefer="respond-async").status_code for _ in range(10)]
        assert answers == [202] * 10
        assert there.metrics()["sensorflow_buffer_rows"] == 40_000
        there.server.process.terminate()
        proxy.resume()
        assert there.server.wait() == 0
    assert scalar(embedded_database_url, "SELECT count(*) FROM readings") == 40_000


def test_a_repeated_request_is_answered_as_the_first_also_by_the_next_server(database: str, tmp_path: Path) -> None:
    sent = [reading("again", temperature=number) for number in range(50)]
    requests: list[tuple[str, list[dict[str, object]], str, dict[str, str]]] = [
        ("whole", sent, "", {}),
        ("partly", [*sent, reading("again", temperature="x")], "", {}),
        ("later", sent, "", {"Prefer": "respond-async"}),
        ("unknown", [reading("again", battery=1)], "precision=ms", {}),
    ]

    def send_all(there: Site) -> list[tuple[int, bytes]]:
        answers = [
            there.send(*readings, query=query, Idempotency_Key=key, **headers)
            for key, readings, query, headers in requests
        ]
        eventually(lambda: there.metrics()["sensorflow_buffer_rows"] == 0)
        return [(answer.status_code, answer.content) for answer in answers]

    with site(tmp_path, database) as there:
        first = send_all(there)
        assert [status for status, _ in first] == [201, 422, 202, 201]
        assert send_all(there) == first
        packed, headers = encoded(sent, "ndjson", "gzip")
        again = there.client.post(PATH, content=packed, headers={**headers, "Idempotency-Key": "whole"})
        assert (again.status_code, again.content) == first[0]
        for other, query in ((sent[:-1], ""), (sent, "partial=false"), (sent, "precision=s")):
            answer = there.send(*other, query=query, Idempotency_Key="whole")
            assert answer.status_code == 409
            assert "another request" in answer.json()["detail"]
    with site(tmp_path, database) as there:
        assert send_all(there) == first
    assert scalar(database, "SELECT count(*) FROM readings") == 50 + 50 + 50 + 1


def test_a_request_of_which_nothing_was_stored_leaves_its_key_free(shared: Site) -> None:
    bad, good = reading("free", temperature="x"), reading("free")
    assert shared.send(bad, good, query="partial=false", Idempotency_Key="free").status_code == 422
    answer = shared.send(good, query="partial=false", Idempotency_Key="free")
    assert (answer.status_code, answer.json()) == (201, {"stored": 1})


def offline(sensor: str, hours: int = 960) -> list[dict[str, object]]:
    """Return a body of a device that was offline for long, with one bad reading."""
    sent = [reading(sensor, ago=timedelta(hours=hour)) for hour in range(hours)]
    return [*sent[:3], reading(sensor, temperature="x"), *sent[3:]]


TOO_OLD = 960 - 30 * 24


def test_backfill_of_what_was_rejected(shared: Site) -> None:
    """The same key with backfill stores what is missing, and each request is answered again as it was first."""
    sent = offline("offline")
    first = shared.send(*sent, Idempotency_Key="offline")
    said = first.json()
    assert (first.status_code, said["stored"], said["rejected"]) == (422, 960 - TOO_OLD, TOO_OLD + 1)
    assert said["rejected_rows"] == f"4,{962 - TOO_OLD}-961"
    assert "the same Idempotency-Key and backfill=true" in said["hints"][0]
    rest = shared.send(*sent, query="backfill=true", Idempotency_Key="offline")
    assert (rest.status_code, rest.json()["stored"], rest.json()["rejected_rows"]) == (422, TOO_OLD, "4")
    assert Counter(rows(shared.url, "offline")) == Counter(row_of(each) for each in sent if each["temperature"] != "x")
    for query, answer in (("", first), ("backfill=true", rest), ("", first), ("backfill=true", rest)):
        again = shared.send(*sent, query=query, Idempotency_Key="offline")
        assert (again.status_code, again.content) == (answer.status_code, answer.content)
    assert len(rows(shared.url, "offline")) == 960
    for other, query in ((sent[1:], "backfill=true"), (sent, "backfill=true&partial=ok"), (sent, "precision=s")):
        assert shared.send(*other, query=query, Idempotency_Key="offline").status_code == 409


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "respond-async"}], ids=["awaited", "not awaited"])
def test_eight_backfills_at_once(shared: Site, prefer: dict[str, str]) -> None:
    """Eight backfills at once store their readings once, and get the same answer."""
    sent = offline(f"at once {len(prefer)}")
    key = {"Idempotency_Key": f"at once {len(prefer)}", **prefer}
    assert shared.send(*sent, **key).status_code == 422
    eventually(lambda: shared.metrics()["sensorflow_buffer_rows"] == 0)
    with ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(lambda _: shared.send(*sent, query="backfill=true", **key), range(8)))
    eventually(lambda: shared.metrics()["sensorflow_buffer_rows"] == 0)
    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert len(rows(shared.url, f"at once {len(prefer)}")) == 960


def test_backfill_where_nothing_is_missing(shared: Site) -> None:
    """A request that was stored completely gets its first answer. A request of which nothing was stored is stored."""
    whole, old = [reading("nothing missing")] * 3, [reading("all missing", ago=timedelta(days=31))] * 3
    first = shared.send(*whole, Idempotency_Key="nothing missing")
    again = shared.send(*whole, query="backfill=true", Idempotency_Key="nothing missing")
    assert (first.status_code, first.content) == (again.status_code, again.content) == (201, b'{"stored":3}')
    refused = shared.send(*old, Idempotency_Key="all missing")
    assert (refused.json()["stored"], refused.json()["rejected_rows"]) == (0, "1-3")
    assert "again with backfill=true" in refused.json()["hints"][0]
    for _ in range(2):
        stored = shared.send(*old, query="backfill=true", Idempotency_Key="all missing")
        assert (stored.status_code, stored.content) == (201, b'{"stored":3}')
    assert len(rows(shared.url, "nothing missing")) == len(rows(shared.url, "all missing")) == 3
    without_key = shared.send(*old, *whole).json()
    assert "Send only the rows in rejected_rows again" in without_key["hints"][0]


SINGLE = "/api/temperature_reading"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "single"}


def test_a_single_reading_is_repeated_likewise(database: str, tmp_path: Path) -> None:
    body, headers = json.dumps(READING).encode(), {"Idempotency-Key": "one"}
    with site(tmp_path, database) as there:
        first = there.client.post(SINGLE, content=body, headers=headers)
        again = there.client.post(SINGLE, content=body, headers=headers)
        assert first.status_code == again.status_code == 201
        assert first.content == again.content
        other = there.client.post(SINGLE, json={**READING, "temperature": 0}, headers=headers)
        assert other.status_code == 409
        assert there.post(body, "application/json", Idempotency_Key="one").status_code == 409
    with site(tmp_path, database) as there:
        assert there.client.post(SINGLE, content=body, headers=headers).content == first.content
    assert scalar(database, "SELECT count(*) FROM readings") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_eight_senders_of_one_request_store_it_once_and_hear_the_same(
    embedded_database_url: str, tmp_path: Path, workers: str
) -> None:
    """The parent hands connections to the workers in turn, so that four of the eight reach each."""
    url = embedded_database_url
    with site(tmp_path, url, WORKERS=workers) as there, ThreadPoolExecutor(8) as senders:
        barrier = threading.Barrier(8)

        def send(path: str, body: bytes, key: str) -> tuple[int, bytes]:
            headers = {"X-API-Key": API_KEY, "Content-Type": NDJSON, "Idempotency-Key": key}
            with httpx.Client(base_url=there.server.url, headers=headers, timeout=30) as client:
                client.get("/health")
                barrier.wait()
                answer = client.post(path, content=body)
                return answer.status_code, answer.content

        for number in range(5):
            sent = [*some_readings(f"{number} ", 2_000), reading("bad", temperature="x")]
            answers = set(senders.map(send, [PATH] * 8, [bodies.ndjson(sent)] * 8, [f"bulk {number}"] * 8))
            assert [status for status, _ in answers] == [422]
            single = json.dumps({**READING, "humidity": number}).encode()
            answers = set(senders.map(send, [SINGLE] * 8, [single] * 8, [f"single {number}"] * 8))
            assert [status for status, _ in answers] == [201]
        _holds_nothing(there)
    assert scalar(url, "SELECT count(*) FROM readings") == 5 * 2_001


def test_a_repetition_may_reach_another_worker(embedded_database_url: str, tmp_path: Path) -> None:
    with site(tmp_path, embedded_database_url, WORKERS="2") as there:
        answers = set()
        for _ in range(4):  # each on a connection of its own, and so on one worker after the other
            with httpx.Client(base_url=there.server.url, headers={"X-API-Key": API_KEY}) as client:
                answer = client.post(PATH, json=[reading("two")], headers={"Idempotency-Key": "two"})
                single = client.post(SINGLE, json=READING, headers={"Idempotency-Key": "one"})
                answers.add((answer.status_code, answer.content, single.status_code, single.content))
        assert len(answers) == 1
        assert next(iter(answers))[::2] == (201, 201)
    assert scalar(embedded_database_url, "SELECT count(*) FROM readings") == 2


@pytest.mark.parametrize("fault", [Fault.STALL_AT_COMMIT, Fault.LOSE_COMMIT_ANSWER, Fault.LOSE_COMMIT, None])
def test_whoever_repeats_after_504_until_there_is_an_answer_is_stored_once(
    embedded_database_url: str, tmp_path: Path, fault: Fault | None
) -> None:
    """A sender that repeats after 504 is stored once, even if the database only hangs and then continues."""
    settings = {"COMMIT_TIMEOUT_S": "0.5", "FLUSH_TIMEOUT_S": "1.5", "DRAIN_TIMEOUT_S": "2"}
    with (
        faulty_proxy(embedded_database_url) as proxy,
        site(tmp_path, embedded_database_url, through=proxy.url, **settings) as there,
        ThreadPoolExecutor(2) as senders,
    ):
        bulk, single = bodies.ndjson(some_readings("", 500)), json.dumps(READING).encode()

        def repeat(path: str, body: bytes, key: str) -> list[tuple[int, bytes]]:
            answers: list[tuple[int, bytes]] = []
            headers = {"Content-Type": NDJSON, "Idempotency-Key": key}

            def is_answered() -> bool:
                answer = there.client.post(path, content=body, headers=headers)
                answers.append((answer.status_code, answer.content))
                return answer.status_code == 201

            eventually(is_answered, timeout_s=30)
            return answers

        if fault is None:
            proxy.hang()
            threading.Timer(1, proxy.resume).start()
        else:
            proxy.fault, proxy.faults_left = fault, 1
        repeated = senders.map(repeat, (PATH, SINGLE), (bulk, single), ("bulk", "single"))
        for answers, path, body, key in zip(repeated, (PATH, SINGLE), (bulk, single), ("bulk", "single"), strict=True):
            assert {status for status, _ in answers} <= {201, 503, 504}
            assert repeat(path, body, key) == answers[-1:]
        said = there.metrics()
        assert adds_up(said)
        assert said["sensorflow_readings_committed_total"] == 501
    assert scalar(embedded_database_url, "SELECT count(*) FROM readings") == 501
    assert scalar(embedded_database_url, "SELECT count(DISTINCT id) FROM readings") == 501


def test_a_row_that_only_postgresql_refuses_is_named_and_its_neighbours_are_stored(
    database: str, tmp_path: Path
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("ALTER TABLE readings ADD CONSTRAINT sane CHECK (temperature < 100)")
    sent = [reading("refused", temperature=number / 10) for number in range(990)]
    sent[10] = reading("refused", temperature="x")
    sent[500] = reading("refused", temperature=100)
    sent[700] = reading("refused", temperature=200)
    with site(tmp_path, database) as there:
        for _ in range(2):
            answer = there.send(*sent, Idempotency_Key="refused")
            said = answer.json()
            assert (answer.status_code, said["stored"], said["rejected"]) == (422, 987, 3)
            assert [fault["row"] for fault in said["errors"]] == [11, 501, 701]
            assert "sane" in said["errors"][1]["reason"]
        good = [row for place, row in enumerate(sent) if place not in (10, 500, 700)]
        assert Counter(rows(database)) == Counter(map(row_of, good))

        whole = [reading("whole", temperature=number) for number in (1, 2, 100, 3)]
        answer = there.send(*whole, query="partial=false")
        said = answer.json()
        assert (answer.status_code, said["stored"], said["rejected"]) == (422, 0, 1)
        assert [fault["row"] for fault in said["errors"]] == [3]
        assert not rows(database, "whole")
        assert there.send(*whole[:2], query="partial=false").json() == {"stored": 2}
        assert adds_up(there.metrics())


def test_many_rows_that_postgresql_refuses_hold_up_nobody(embedded_database_url: str, tmp_path: Path) -> None:
    bad = b'{"sensor_id":"bad","temperature":1000}\n' * 99_999
    good = b'{"sensor_id":"good","temperature":1}\n'
    with site(tmp_path, embedded_database_url, FLUSH_TIMEOUT_S="6") as there:
        with psycopg.connect(embedded_database_url) as connection:
            connection.execute("ALTER TABLE readings ADD CONSTRAINT sane CHECK (temperature < 100)")
        assert there.post(bad + good, Prefer="respond-async").status_code == 202
        eventually(lambda: there.post(good).status_code == 201)
        said = there.metrics()
        assert said["sensorflow_readings_rejected_total"] >= 99_999
        assert adds_up(said)
        assert any("refused" in message and "answered 202" in message for message in there.server.messages)
    assert {sensor for sensor, *_ in rows(embedded_database_url)} == {"good"}


async def test_every_subscriber_hears_every_reading_of_bulk_once_and_then_the_latest_first(
    embedded_database_url: str, tmp_path: Path
) -> None:
    with site(tmp_path, embedded_database_url) as there:
        async with listen(there.server) as one, listen(there.server) as two:
            sent = [some_readings(f"{number} ", 1_500) for number in range(4)]
            with ThreadPoolExecutor(4) as senders:
                answers = list(await asyncio.to_thread(lambda: list(senders.map(lambda each: there.send(*each), sent))))
            assert [answer.status_code for answer in answers] == [201] * 4
            for websocket in (one, two):
                heard = [await receive(websocket) for _ in range(6_000)]
                assert len({message["id"] for message in heard}) == 6_000
                fields = ("sensor_id", "temperature", "humidity", "pressure")
                assert Counter(tuple(message[field] for field in fields) for message in heard) == Counter(
                    tuple(each[field] for field in fields) for readings in sent for each in readings
                )
            await asyncio.to_thread(there.send, reading("last", pressure=None))
            assert (await receive(one))["sensor_id"] == (await receive(two))["sensor_id"] == "last"
        latest = reading("latest", ago=timedelta(minutes=-1), temperature=None, humidity=50)
        await asyncio.to_thread(there.send, reading("late", ago=timedelta(days=1)), latest, reading("late"))
        async with listen(there.server) as later:
            first = await receive(later)
        assert (first["sensor_id"], first["temperature"], first["humidity"]) == ("latest", None, 50)


KILLS = 5
SENDERS = 8
BATCH = 100


def test_kills_under_load_lose_nothing_and_what_is_repeated_with_its_key_is_stored_once(
    embedded_database_url: str, tmp_path: Path
) -> None:
    numbers, is_over = iter(range(1, 1_000_000)), threading.Event()
    servers: list[str] = []
    keyed: set[int] = set()
    unkeyed: set[int] = set()

    def send(batch: int, key: str | None) -> httpx.Response | None:
        sent = [reading(f"s{batch % 7}", temperature=batch, humidity=row) for row in range(BATCH)]
        headers = {"Idempotency-Key": key} if key else {}
        try:
            return client.post(servers[-1] + PATH, content=bodies.ndjson(sent), headers=headers)
        except httpx.TransportError:
            return None

    client = httpx.Client(headers={"X-API-Key": API_KEY, "Content-Type": NDJSON}, timeout=30)

    def work(sender: int) -> None:
        while not is_over.is_set():
            batch = next(numbers)
            key = f"batch {batch}" if sender % 2 else None
            answer = send(batch, key)
            while key and (answer is None or answer.status_code != 201):
                assert answer is None or answer.status_code in (503, 504)
                time.sleep(0.02)
                answer = send(batch, key)
            if answer is not None and answer.status_code == 201:
                (keyed if key else unkeyed).add(batch)

    def has_answered(requests: int) -> bool:
        return len(keyed) + len(unkeyed) >= requests

    with ThreadPoolExecutor(SENDERS) as senders:
        working: list[Future[None]] = []
        for _ in range(KILLS):
            with site(tmp_path, embedded_database_url) as there:
                servers.append(there.server.url)
                working = working or [senders.submit(work, sender) for sender in range(SENDERS)]
                enough = len(keyed) + len(unkeyed) + 20
                eventually(partial(has_answered, enough))
                there.server.process.kill()
                there.server.wait()
        with site(tmp_path, embedded_database_url) as there:
            servers.append(there.server.url)
            is_over.set()
            for each in working:
                each.result(60)
    assert len(keyed) > KILLS
    assert len(unkeyed) > KILLS
    with psycopg.connect(embedded_database_url) as connection:
        stored = connection.execute(
            "SELECT temperature::int, count(*), count(DISTINCT humidity) FROM readings GROUP BY 1"
        ).fetchall()
    assert keyed | unkeyed <= {batch for batch, *_ in stored}
    assert {(count, distinct) for _, count, distinct in stored} == {(BATCH, BATCH)}


MIB = 2**20


def peak_memory(there: Site) -> int:
    """Return the server's peak of resident memory, bytes."""
    status = Path(f"/proc/{there.server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1_024


def sending(there: Site, requests: list[tuple[bytes, dict[str, str]]], *, senders: int = 16) -> list[httpx.Response]:
    """Send requests from several senders, each one after the other, until every request was sent."""

    def send(request: tuple[bytes, dict[str, str]]) -> httpx.Response:
        body, headers = request
        return there.client.post(PATH, content=body, headers={"Content-Type": NDJSON, **headers})

    with ThreadPoolExecutor(senders) as executor:
        return list(executor.map(send, requests))


def test_with_a_database_that_hangs_memory_is_bounded_and_all_is_accounted_for(
    embedded_database_url: str, tmp_path: Path
) -> None:
    """With a hanging database memory stays within the default bounds and every reading is accounted for."""
    ten_thousand = bodies.ndjson(some_readings("", 2_000)) * 5
    line = b'{"sensor_id":"large","temperature":1,"padding":"%s"}\n' % (b"x" * 150)
    large = line * (16 * MIB // len(line))
    buffered, packed = {"Prefer": "respond-async"}, {"Content-Encoding": "gzip"}
    with (
        faulty_proxy(embedded_database_url) as proxy,
        site(tmp_path, embedded_database_url, through=proxy.url, BUFFER_MAX_ROWS="400000") as there,
    ):
        assert there.send(reading("first")).status_code == 201
        proxy.hang()
        answers = sending(there, [(ten_thousand, buffered), (ten_thousand, {}), (ten_thousand, buffered)] * 32)
        assert {answer.status_code for answer in answers} <= {202, 429, 503, 504}
        eventually(lambda: there.post(ten_thousand, **buffered).status_code == 503)
        answers += sending(
            there,
            [(large, {}), (CODECS["gzip"](large), packed), (CODECS["gzip"](b" " * 64 * MIB), packed)] * 16,
        )
        assert {answer.status_code for answer in answers[96:]} <= {413, 429, 503}
        assert {202, 429, 503} <= {answer.status_code for answer in answers}
        for answer in answers:
            if answer.status_code in (429, 503):
                assert int(answer.headers["Retry-After"]) >= 1
        metrics = there.metrics()
        assert adds_up(metrics)
        assert 390_000 < metrics["sensorflow_buffer_rows"] <= 400_000
        assert metrics["sensorflow_buffer_bytes"] <= metrics["sensorflow_buffer_max_bytes"]
        held = peak_memory(there)
        proxy.resume()
        eventually(lambda: there.metrics()["sensorflow_buffer_rows"] == 0, timeout_s=60)
        eventually(lambda: there.send(reading("last")).status_code == 201)
        assert there.post(large).json() == {"stored": large.count(b"\n"), "unknown_columns": ["padding"]}
        _holds_nothing(there)
        metrics = there.metrics()
        assert held < metrics["sensorflow_buffer_max_bytes"] + 200 * MIB
    committed = metrics["sensorflow_readings_committed_total"]
    assert scalar(embedded_database_url, "SELECT count(*) FROM readings") == committed


def test_small_bodies_that_would_become_large_are_refused_within_the_bounds_of_memory(
    embedded_database_url: str, tmp_path: Path
) -> None:
    bombs = {
        "text/csv": b"sensor_id,x\n" + b'"\n' * 13_000_000,
        "application/json": b"[" + b"[]," * 8_000_000 + b"[]]",
        NDJSON: b"1\n" * 13_000_000,
    }
    with site(tmp_path, embedded_database_url, MAX_BULK_INFLATED_BYTES=str(64 * MIB)) as there:
        for content_type, bomb in bombs.items():
            answer = there.post(CODECS["gzip"](bomb), content_type, Content_Encoding="gzip")
            assert (answer.status_code, "split it" in answer.json()["detail"]) == (413, True)
        assert peak_memory(there) < there.metrics()["sensorflow_buffer_max_bytes"] + 200 * MIB
        _holds_nothing(there)
