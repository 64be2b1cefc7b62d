"""The command ``python -m app import``, as a person at a terminal uses it."""

import csv
import io
import json
import re
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pyarrow as pa
import pyarrow.feather
import pytest

from app.imports.command import REJECTED_STATUS
from app.store.database import migrate
from tests.support import bodies
from tests.support.bulk import CODECS, Row, row_of, rows, scalar
from tests.support.server import API_KEY, command, eventually, run_command, running

COUNT = "SELECT count(*) FROM readings"
COLUMNS = ("--sensor", "station", "--time", "when", "--column", "temperature=temp", "--column", "humidity=humid")


@pytest.fixture
def url(embedded_database_url: str) -> str:
    """Make a database with the schema in it."""
    migrate(embedded_database_url)
    return embedded_database_url


def readings(count: int) -> list[dict[str, object]]:
    """Return different readings of long ago, a minute apart."""
    return [
        {
            "sensor_id": f"station {number % 5}",
            "time": f"2013-{1 + number % 12:02}-{1 + number % 28:02}T{number % 24:02}:{number % 60:02}:00+00:00",
            "temperature": number / 8,
            "humidity": None if number % 3 else 50.5,
            "pressure": None,
        }
        for number in range(count)
    ]


def renamed(sent: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the readings with the columns of another file."""
    names = {"sensor_id": "station", "time": "when", "temperature": "temp", "humidity": "humid", "pressure": "pressure"}
    return [{theirs: reading[ours] for ours, theirs in names.items()} for reading in sent]


def as_csv(records: list[dict[str, object]], delimiter: str = ",") -> bytes:
    """Write a CSV as Python does."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, records[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_parquet(records: list[dict[str, object]]) -> bytes:
    """Parquet as pyarrow writes it."""
    return bodies.parquet(pa.Table.from_pylist(records))


def as_feather(records: list[dict[str, object]]) -> bytes:
    """Write an Arrow file as pyarrow does."""
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


FILES = {
    "a.csv": as_csv,
    "a.csv.gz": lambda records: CODECS["gzip"](as_csv(records)),
    "a.csv.zst": lambda records: CODECS["zstd"](as_csv(records)),
    "a.ndjson": bodies.ndjson,
    "a.jsonl.gz": lambda records: CODECS["gzip"](bodies.ndjson(records)),
    "a.ndjson.zst": lambda records: CODECS["zstd"](bodies.ndjson(records)),
    "a.parquet": as_parquet,
    "a.tsv": lambda records: as_csv(records, delimiter="\t"),
    "a.CSV.GZ": lambda records: CODECS["gzip"](as_csv(records, delimiter=";")),
    "a.json": bodies.json_array,
    "b.json.zst": lambda records: CODECS["zstd"](bodies.ndjson(records)),
    "a.arrow": lambda records: bodies.arrow_stream(pa.Table.from_pylist(records)),
    "a.feather": as_feather,
}


def test_files_of_every_kind_become_the_rows_that_they_hold(database: str, tmp_path: Path) -> None:
    sent = readings(500)
    for name, encode in FILES.items():
        marked = [{**reading, "sensor_id": f"{name} {reading['sensor_id']}"} for reading in sent]
        (tmp_path / name).write_bytes(encode(renamed(marked)))
    status, output = run_command(tmp_path, "import", *FILES, *COLUMNS, DATABASE_URL=database)
    assert (status, output.count("500 readings stored")) == (0, len(FILES)), output
    for name in FILES:
        expected = [row_of({**reading, "sensor_id": f"{name} {reading['sensor_id']}"}) for reading in sent]
        assert Counter(rows(database, f"{name} %")) == Counter(expected)
    status, output = run_command(tmp_path, "import", *FILES, *COLUMNS, DATABASE_URL=database)
    assert (status, output.count("0 readings stored, 500 were imported before (on ")) == (0, len(FILES)), output
    assert scalar(database, COUNT) == 500 * len(FILES)
    assert scalar(database, "SELECT count(DISTINCT id) FROM readings") == 500 * len(FILES)
    assert not list(tmp_path.glob("*.rejected.csv"))


def test_fahrenheit_becomes_celsius_and_numbers_are_of_the_unit_that_is_said(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "sensor_id,time,temperature\nbench,1000000,212\nbench,2000000,\nbench,3000000,-40\n"
    )
    (tmp_path / "b.csv").write_text("sensor_id,time,temperature\nbench,1000000000,32\n")
    arguments = ("--fahrenheit", "temperature", "--precision", "ms")
    status, output = run_command(tmp_path, "import", "a.csv", "b.csv", *arguments, DATABASE_URL=url)
    assert status == REJECTED_STATUS, output
    found = sorted((time.timestamp(), temperature) for _, time, temperature, *_ in rows(url))
    assert found == [(1_000, 100), (3_000, -40), (1_000_000, 0)]


def test_what_is_rejected_is_reported_by_row_and_the_rest_is_stored(url: str, tmp_path: Path) -> None:
    lines = ["sensor_id,time,temperature", "a,2013-01-01T00:00:00Z,1", "", "a,2013-01-01T01:00:00Z,warm", "a,,3"]
    lines += [",2013-01-01T02:00:00Z,1", "a,yesterday,1", "a,2113-01-01T00:00:00Z,1", "a,2013-01-01T03:00:00Z,9"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for _ in range(2):
        status, output = run_command(tmp_path, "import", "a.csv", DATABASE_URL=url)
        assert (status, "5 rejected, see a.csv.rejected.csv" in output) == (REJECTED_STATUS, True), output
        with (tmp_path / "a.csv.rejected.csv").open(newline="") as file:
            report = list(csv.DictReader(file))
        sent = [line.split(",") for line in lines if line]
        assert [[row[name] for name in sent[0]] for row in report] == sent[2:7]
        assert [row["rejected_row"] for row in report] == ["2", "3", "4", "5", "6"]
        assert ["time" in row["rejected_reason"] for row in report] == [False, True, False, True, True]
    assert scalar(url, COUNT) == 2
    (tmp_path / "a.csv").write_text("\n".join(lines[:2]))
    assert run_command(tmp_path, "import", "a.csv", DATABASE_URL=url)[0] == 0
    assert not (tmp_path / "a.csv.rejected.csv").exists()


def test_a_row_that_only_postgresql_refuses_is_reported(url: str, tmp_path: Path) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE readings ADD CONSTRAINT sane CHECK (temperature < 100)")
    sent = readings(1_000)
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson(sent))
    status, output = run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=url)
    assert (status, "800 readings stored, 200 rejected" in output) == (REJECTED_STATUS, True), output
    report = (tmp_path / "a.ndjson.rejected.csv").read_text()
    assert sorted(map(int, re.findall(r"^station .*?,(\d+),", report, re.MULTILINE))) == list(range(801, 1_001))
    assert "sane" in report


def test_a_dry_run_checks_and_stores_nothing_and_needs_no_database(tmp_path: Path) -> None:
    sent = [*readings(10), {"sensor_id": "a", "time": "2013-01-01", "temperature": "x"}]
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson(sent))
    nowhere = f"postgresql://nobody@/nothing?host={tmp_path}"
    status, output = run_command(tmp_path, "import", "--dry-run", "a.ndjson", DATABASE_URL=nowhere)
    assert (status, "10 readings would be stored, 1 rejected" in output) == (REJECTED_STATUS, True), output
    status, output = run_command(tmp_path, "import", "--dry-run", "a.ndjson")
    assert (status, (tmp_path / "data").exists()) == (REJECTED_STATUS, False), output


def test_what_programs_put_before_and_between_lines_of_a_csv_does_not_matter(url: str, tmp_path: Path) -> None:
    lines = (HEADER + LINE * 3).splitlines()
    for name, start, end in (("mark", b"\xef\xbb\xbf", b"\n"), ("blank", b"\n \r\n", b"\r\n"), ("old", b"", b"\r")):
        (tmp_path / f"{name}.csv").write_bytes(start + end.join(lines).replace(b"sensor_id", b" station"))
        status, output = run_command(tmp_path, "import", f"{name}.csv", "--sensor", "station", DATABASE_URL=url)
        assert (status, "3 readings stored" in output) == (0, True), output
        assert output.splitlines()[1:] == [f"{name}.csv: times from 2013-01-01T00:00:00Z to 2013-01-01T00:00:00Z"], (
            output
        )


def large_csv(path: Path, count: int) -> list[Row]:
    """Write a CSV of many blocks, whose names have quotes and newlines. Return its number of rows."""
    sent = [{**each, "sensor_id": f'"{each["sensor_id"]}",\nby the\r\ndoor {"x" * 60}'} for each in readings(count)]
    path.write_bytes(as_csv(sent))
    return list(map(row_of, sent))


def test_a_file_of_several_blocks_with_newlines_in_quotes_arrives_whole(url: str, tmp_path: Path) -> None:
    expected = large_csv(tmp_path / "large.csv", 80_000)
    assert (tmp_path / "large.csv").stat().st_size > 2 * 4 * 2**20
    (tmp_path / "large.csv.gz").write_bytes(CODECS["gzip"]((tmp_path / "large.csv").read_bytes()))
    for name, said in (("large.csv", "80,000 readings stored"), ("large.csv.gz", "80,000 were imported before")):
        status, output = run_command(tmp_path, "import", name, DATABASE_URL=url)
        assert (status, said in output) == (0, True), output
    assert Counter(rows(url)) == Counter(expected)


def has_more_than(url: str, count: int) -> bool:
    """Return whether more than ``count`` readings are committed."""
    return bool(scalar(url, COUNT) > count)


def test_an_import_that_is_killed_or_stopped_and_run_again_stores_every_reading_once(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson(readings(400_000)))
    # What a script runs in its background ignores SIGINT, as a child does whose parent does.
    for signal_, of_sigint in (
        (signal.SIGKILL, signal.SIG_IGN),
        (signal.SIGTERM, signal.SIG_IGN),
        (signal.SIGINT, signal.SIG_DFL),
    ):
        has_more = partial(has_more_than, url, scalar(url, COUNT))
        own = signal.signal(signal.SIGINT, of_sigint)
        importing = command(tmp_path, "import", "a.ndjson", DATABASE_URL=url)
        signal.signal(signal.SIGINT, own)
        with importing as importer:
            eventually(has_more, timeout_s=60)
            importer.send_signal(signal_)
            output, _ = importer.communicate(timeout=60)
        if signal_ != signal.SIGKILL:
            assert importer.returncode == 130
            assert re.fullmatch(r"sensorflow: stopped\. .*\n", output), output
    assert 0 < scalar(url, COUNT) < 400_000
    status, output = run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=url)
    assert (status, "were imported before" in output) == (0, True), output
    assert scalar(url, COUNT) == scalar(url, "SELECT count(DISTINCT temperature) FROM readings") == 400_000


def test_it_may_run_beside_the_server_on_the_embedded_database(folder: Path) -> None:
    (folder / "a.ndjson").write_bytes(bodies.ndjson(readings(20_000)))
    key = {"X-API-Key": API_KEY}
    single = {"sensor_id": "live", "temperature": 1, "humidity": 2, "pressure": 3}
    with running(folder, API_KEY=API_KEY) as server:
        with command(folder, "import", "a.ndjson") as importer:
            while importer.poll() is None:
                answer = httpx.post(f"{server.url}/api/temperature_reading", json=single, headers=key, timeout=15)
                assert answer.status_code == 201
            assert importer.returncode == 0
        assert httpx.get(f"{server.url}/ready").status_code == 200
        database = f"host={folder / 'data' / 'socket'} user=sensorflow dbname=postgres"
        assert (
            scalar(database, f"{COUNT} WHERE source_id = (SELECT id FROM sources WHERE key_name = 'import')") == 20_000
        )
        assert server.stop() == 0
    # Alone, it starts the database and stops it.
    status, output = run_command(folder, "import", "a.ndjson")
    assert (status, "0 readings stored, 20,000 were imported before" in output) == (0, True), output
    assert not (folder / "data" / "postgres" / "postmaster.pid").exists()


HEADER = b"sensor_id,time,temperature\n"
LINE = b"a,2013-01-01T00:00:00Z,1\n"


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        (("missing.csv", None), (), "No such file"),
        (("a.txt", b"x"), (), "should be named"),
        (("a.csv", HEADER + LINE), ("--sensor", "station"), "no column 'station'"),
        (("a.csv", b"station,time\n" + LINE), (), "sensor_id"),
        (("a.csv", HEADER + LINE), ("--column", "warmth=temperature"), "warmth=temperature"),
        (("a.csv", HEADER + LINE), ("--precision", "h"), "h"),
        (("a.csv", b""), (), "header"),
        (("a.csv", b"\xff\xfe" + HEADER.decode().encode("utf-16-le")), (), "UTF-8"),
        (("a.csv", b"caf\xe9,time,temperature\n" + LINE), (), "UTF-8"),
        (("a.csv", (HEADER + LINE).replace(b"\n", b"\r")), ("--sensor", "station"), "no column 'station'"),
        (
            ("a.csv", HEADER.replace(b",", b";") + b"a;2013-01-01;1\na;2013-01-01;1,5\na;2013-01-01;1.5\n"),
            (),
            "--decimal",
        ),
        (("a.csv", HEADER + LINE), ("--skip-lines", "3"), "--skip-lines 3"),
        (("a.csv", HEADER + LINE), ("--sensor-name", "a"), "--sensor-name"),
        (("a.csv", b"sensor_id,timestamp,temperature\n"), (), "--time timestamp"),
        (("a.csv.gz", b"not gzip at all"), (), "Can't read"),
        (("a.csv.gz", CODECS["gzip"](HEADER + LINE * 1_000)[:-20]), (), "Can't read"),
        (("a.csv.zst", CODECS["zstd"](HEADER + LINE * 1_000)[:-5]), (), "Can't read"),
        (("a.parquet", b"PAR1 and then nothing"), (), "Can't read"),
        (("a.parquet", as_parquet([{"station": "a", "temperature": 1.0}])), (), "sensor_id"),
        (("a.parquet", as_parquet([{"sensor_id": "a", "time": True, "temperature": 1.0}])), (), "time"),
    ],
)
def test_what_cannot_be_imported_ends_with_a_message_and_without_a_traceback(
    tmp_path: Path, file: tuple[str, bytes | None], arguments: tuple[str, ...], said: str
) -> None:
    name, content = file
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, output = run_command(tmp_path, "import", "--dry-run", name, *arguments)
    assert "Traceback" not in output, output
    assert said in output
    assert status in (1, 2)


def test_of_several_files_those_before_a_broken_one_are_stored(url: str, tmp_path: Path) -> None:
    for name in ("a.csv", "c.csv"):
        (tmp_path / name).write_bytes(HEADER + LINE)
    (tmp_path / "b.csv").write_bytes(LINE)
    status, output = run_command(tmp_path, "import", "a.csv", "b.csv", "c.csv", DATABASE_URL=url)
    assert (status, "Traceback" in output) == (1, False), output
    assert "b.csv has no column 'sensor_id'" in output
    assert scalar(url, COUNT) == 1


def test_without_its_database_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + LINE)
    nowhere = f"postgresql://nobody@/nothing?host={tmp_path}"
    status, output = run_command(tmp_path, "import", "a.csv", DATABASE_URL=nowhere)
    assert (status, "Traceback" in output) == (1, False), output
    assert output.startswith("sensorflow: ")


def test_ndjson_of_other_names_and_nan(url: str, tmp_path: Path) -> None:
    """Columns are renamed in every line, whatever else is in it: NaN, large numbers, other columns of our names."""
    odd = ["NaN", "-Infinity", "1" * 30, '"x"', "[NaN]", "1e999", '{"sensor_id": 1}', "null"]
    lines = [
        f'{{"station": "s{row}", "when": "2013-01-0{row + 1}", "temp": {row}, "sensor_id": "wrong", "time": {value}, '
        f'"temperature": 99, "other": {value}}}'
        for row, value in enumerate(odd)
    ]
    (tmp_path / "a.ndjson").write_text("\n".join([*lines, "nothing"]))
    options = ("--sensor", "station", "--time", "when", "--column", "temperature=temp")
    status, output = run_command(tmp_path, "import", "a.ndjson", *options, DATABASE_URL=url)
    assert (status, "8 readings stored, 1 rejected" in output) == (REJECTED_STATUS, True), output
    found = sorted((name, time.day, temperature) for name, time, temperature, *_ in rows(url))
    assert found == [(f"s{row}", row + 1, row) for row in range(8)]


def test_deleted_readings_are_stored_again(database: str, tmp_path: Path) -> None:
    """Readings that were imported and then deleted by hand are reported as known, and --store-again stores them."""
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson(readings(500)))
    assert run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=database)[0] == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM readings")
    _, output = run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=database)
    assert re.search(r"0 readings stored, 500 were imported before \(on \d{4}-\d\d-\d\d\)", output), output
    assert "--store-again" in output
    assert scalar(database, COUNT) == 0
    status, output = run_command(tmp_path, "import", "a.ndjson", "--store-again", DATABASE_URL=database)
    assert (status, "500 readings stored (" in output) == (0, True), output
    _, output = run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=database)
    assert "0 readings stored, 500 were imported before" in output
    assert scalar(database, COUNT) == 500


def test_a_log_that_grows(database: str, tmp_path: Path) -> None:
    """A log of several blocks continues where its import ended, each time it has grown, and nothing is stored twice."""
    sent = readings(90_000)
    text = bodies.ndjson(sent)
    ends = [match.end() for match in re.finditer(b"\n", text)]
    before = 0
    for count in (100, 101, 40_000, 90_000):
        (tmp_path / "a.ndjson").write_bytes(text[: ends[count - 1]])
        status, output = run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=database)
        found = f"{before:,} were imported before" if before else "stored ("
        stored = "1 reading stored" if count - before == 1 else f"{count - before:,} readings stored"
        assert (status, stored in output, found in output) == (0, True, True), output
        before = count
    assert scalar(database, COUNT) == scalar(database, "SELECT count(DISTINCT temperature) FROM readings") == 90_000


LOGGER = """\
"TOA5","CR1000","roof"
"Zeit","Nr","Lufttemperatur, °C","Feuchte
%"
"TS","RN","Deg C","%"
"","","Avg","Smp"
"29.10.2023 01:30",1,"12,5",50
"29.10.2023 02:30",2,"NAN","51,5"
"29.10.2023 03:30",3,"-9999","52,5"
"26.03.2023 02:30",4,"1,5",1
"29.10.2023 04:30",5,"warm",53
"30.10.2023 00:00",6,"1",stray"
"31.10.2023 00:00",7,"2",54
"""


def test_a_file_of_one_logger(url: str, tmp_path: Path) -> None:
    """A logger's file is read by its lines and by the options, and rejected rows can be corrected."""
    (tmp_path / "a.csv").write_text(LOGGER)
    options = (
        *("--sensor-name", "roof", "--time", "Zeit", "--time-format", "%d.%m.%Y %H:%M", "--time-zone", "Europe/Berlin"),
        *("--column", "temperature=Lufttemperatur, °C", "--column", "humidity=Feuchte\n%", "--missing", "-9999"),
    )
    status, output = run_command(tmp_path, "import", "a.csv", *options, DATABASE_URL=url)
    assert (status, "4 readings stored, 3 rejected" in output) == (REJECTED_STATUS, True), output
    expected = [
        ("roof", "2023-10-28 23:30", 12.5, 50.0),
        ("roof", "2023-10-29 00:30", None, 51.5),
        ("roof", "2023-10-29 02:30", None, 52.5),
        ("roof", "2023-10-30 23:00", 2.0, 54.0),
    ]
    assert of_logger(url) == expected
    report = tmp_path / "a.csv.rejected.csv"
    corrected = report.read_text()
    for wrong, right in (("26.03.2023 02:30", "26.03.2023 03:30"), ("warm", '"10,5"')):
        assert wrong in corrected
        corrected = corrected.replace(wrong, right)
    report.write_text(corrected)
    status, output = run_command(tmp_path, "import", report.name, *options, DATABASE_URL=url)
    assert (status, "2 readings stored, 1 rejected" in output) == (REJECTED_STATUS, True), output
    assert "columns not stored: 'Nr'" in output
    assert of_logger(url) == sorted(
        [*expected, ("roof", "2023-03-26 01:30", 1.5, 1.0), ("roof", "2023-10-29 03:30", 10.5, 53.0)]
    )


def of_logger(url: str) -> list[tuple[object, ...]]:
    return sorted((name, f"{time:%Y-%m-%d %H:%M}", *values[:2]) for name, time, *values in rows(url))


@pytest.mark.parametrize(
    ("time", "options"),
    [
        ("20230712", ("--time-format", "%Y%m%d")),
        ("45119.60417", ("--time-format", "excel")),
        ("742487445", ("--precision", "s")),
    ],
)
def test_numbers_that_are_no_epoch(url: str, tmp_path: Path, time: str, options: tuple[str, ...]) -> None:
    """A number that would be an impossible time is rejected in every format, and stored with an option for its unit."""
    sent: dict[str, object] = {"sensor_id": "a", "time": json.loads(time), "temperature": 1.0}
    (tmp_path / "a.csv").write_bytes(as_csv([sent]))
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson([sent]))
    (tmp_path / "a.parquet").write_bytes(as_parquet([sent]))
    names = ("a.csv", "a.ndjson", "a.parquet")
    status, output = run_command(tmp_path, "import", *names, DATABASE_URL=url)
    assert (status, output.count("0 readings stored, 1 rejected")) == (REJECTED_STATUS, 3), output
    status, output = run_command(tmp_path, "import", *names, *options, DATABASE_URL=url)
    assert (status, output.count("1 reading stored")) == (0, 3), output


def test_our_own_export(folder: Path) -> None:
    """Each format of GET /api/readings can be imported as it is."""
    sent = readings(50)
    key = {"X-API-Key": API_KEY}
    with running(folder, API_KEY=API_KEY) as server:
        database = f"host={folder / 'data' / 'socket'} user=sensorflow dbname=postgres"
        url = f"{server.url}/api/readings"
        assert httpx.post(f"{url}?backfill=true", json=sent, headers=key, timeout=15).status_code == 201
        before = Counter(rows(database))
        for name in ("csv", "ndjson", "arrow"):
            query = {"from": "2013-01-01", "bucket": "raw", "format": name}
            answer = httpx.get(url, params=query, headers=key, timeout=15)
            (folder / f"export.{name}").write_bytes(answer.content)
        status, output = run_command(folder, "import", "export.csv", "export.ndjson", "export.arrow")
        assert (status, output.count("50 readings stored")) == (0, 3), output
        assert Counter(rows(database)) == Counter({row: 4 * count for row, count in before.items()})


def test_a_time_zone_of_the_settings(url: str, tmp_path: Path) -> None:
    """TIMEZONE applies to times without an offset, in every format. Times with an offset keep it."""
    sent: list[dict[str, object]] = [
        {"sensor_id": "a", "time": time, "temperature": 1.0} for time in ("2013-07-01T12:00", "2013-07-01T12:00Z")
    ]
    naive = pa.table({"sensor_id": ["a"], "time": pa.array([1372680000], pa.timestamp("s")), "temperature": [1.0]})
    aware = naive.set_column(1, "time", naive["time"].cast(pa.timestamp("s", "UTC")))
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson(sent))
    (tmp_path / "a.csv").write_bytes(as_csv(sent))
    (tmp_path / "naive.parquet").write_bytes(bodies.parquet(naive))
    (tmp_path / "aware.parquet").write_bytes(bodies.parquet(aware))
    names = ("a.ndjson", "a.csv", "naive.parquet", "aware.parquet")
    status, output = run_command(tmp_path, "import", *names, DATABASE_URL=url, TIMEZONE="Europe/Madrid")
    assert (status, output.count("1 time without an offset is taken to be in Europe/Madrid")) == (0, 3), output
    assert Counter(time.hour for _, time, *_ in rows(url)) == {10: 3, 12: 3}


def test_a_text_of_one_column_too_few(url: str, tmp_path: Path) -> None:
    """NDJSON without a sensor's name is refused, with the option that would help."""
    (tmp_path / "a.ndjson").write_text(
        json.dumps({"station": "a", "time": "2013-01-01", "temperature": 1}) + "\nnothing\n"
    )
    status, output = run_command(tmp_path, "import", "a.ndjson", DATABASE_URL=url)
    assert (status, "--sensor station" in output) == (1, True), output
