"""A soak sends what it promises, and its goals are about levels and not about luck."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks.readings import make_readings
from benchmarks.report import Minute, Soak, soak_goals, soak_table
from benchmarks.soak import LATE_ROWS, MAX_LATE_MS, ROWS, Load, ProcessorTime, Tally, portion

START_MS = 1_760_000_000_000
MINUTE = Minute(
    elapsed_s=60,
    rows=1_920_000,
    post_ms=[40.0, 20.0, 30.0],
    get_minutes_ms=[8.0],
    get_raw_ms=[5.0],
    get_past_ms=[6.0],
    server_mb=150,
    database_mb=90,
    shared_mb=800,
    limited_mb=2_000,
    read_mb=90,
    maintenance_cores=0.1,
    database_cores=0.5,
    server_cores=0.2,
    others_cores=0.02,
    stale_ranges=12,
    late_lag_s=7.0,
    lag_s=30,
    database_bytes=300 << 20,
    rowstore_bytes=200 << 20,
    columnstore_bytes=100 << 20,
    chunks=3,
    errors=0,
)


def soak(minutes: Sequence[Minute], *, missing: int = 0, unanswered: int = 0) -> Soak:
    return Soak(minutes, stored=1_000, missing=missing, unanswered=unanswered)


def verdicts(soak: Soak) -> dict[str, str]:
    """Return the verdicts by the first words of the goals."""
    return {goal.text.removeprefix("Soak: ").split(",")[0]: goal.verdict for goal in soak_goals(soak)}


LOADS = [Load(), Load(rate=100_000, sensors=10_000)]


def portions(load: Load, count: int) -> list[pa.Table]:
    """Return the first requests of a load, of which only 20,000 readings are made."""
    made = make_readings(20_000, sensors=load.sensors, start_ms=0)
    return [portion(load, made, number, start_ms=START_MS) for number in range(count)]


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_rows_follow_the_clock(load: Load) -> None:
    """Requests continue each other at the rate of the soak, also where the made readings begin anew."""
    times = [pc.max(rows["time_ms"]).as_py() for rows in portions(load, 12)]
    assert times[-1] - START_MS == pytest.approx(1_000 * load.due_s(11), abs=1_000 / load.speed + 1)
    assert [after - before for before, after in pairwise(times)] == pytest.approx(
        [1_000 * ROWS / load.rate] * 11, abs=1_000 / load.speed
    )


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_rows_have_all_sensors(load: Load) -> None:
    """Requests that follow each other have as many readings of each sensor."""
    turn = max(1, load.sensors // ROWS * 2 + 1)  # 5 requests of 4,000 are 2 readings of each of 10,000 sensors
    counts = Counter(chain.from_iterable(rows["sensor"].to_pylist() for rows in portions(load, turn)))
    assert counts == dict.fromkeys(range(load.sensors), turn * ROWS // load.sensors)


def test_bad_load() -> None:
    """A rate that the sensors or the requests can't share evenly is refused."""
    for rate, sensors in ((32_000, 3_000), (33_000, 1_000)):
        with pytest.raises(ValueError, match=f"It is {rate:,}, of {sensors:,} sensors"):
            Load(rate, sensors)


def test_late_rows() -> None:
    """One row in a hundred is up to five hours late, each time another one."""
    late: list[dict[int, int]] = []
    for number, table in enumerate(portions(Load(), 3)):
        rows = table["time_ms"].to_pylist()
        due = START_MS + round(1_000 * Load().due_s(number - 1))
        late.append({row: due - time for row, time in enumerate(rows) if time < due})
    for rows_late in late:
        assert LATE_ROWS - 2 <= len(rows_late) <= LATE_ROWS
        assert max(rows_late.values()) in range(MAX_LATE_MS // 2, MAX_LATE_MS + 1)
    assert late[0].keys() != late[1].keys() != late[2].keys()


def test_processor_time() -> None:
    """A process counts from the first look or its start, to the last look that found it."""
    spent = ProcessorTime({1: 10.0, 2: 5.0})
    spent.look({1: 10.5, 3: 0.25})
    spent.look({1: 11.0})
    spent.look({1: 11.0, 3: 0.5})
    assert spent.total_s == pytest.approx(1.5)


def test_tally_begins_anew() -> None:
    """A tally gives each answer to one minute."""
    tally = Tally()
    tally.add_post(ROWS, 20.0)
    tally.add_read("raw", 5.0)
    tally.add_read("minutes", 8.0)
    tally.add_read("past", 6.0)
    seen = tally.take()
    assert (seen.rows, seen.post_ms) == (ROWS, [20.0])
    assert seen.get_ms == {"minutes": [8.0], "raw": [5.0], "past": [6.0]}
    assert tally.take().rows == 0


def test_soak_table() -> None:
    """The table has a row for each minute, the means, and the counts."""
    slow = replace(MINUTE, rows=960_000, errors=2, database_cores=None, read_mb=None)
    lines = soak_table(soak([MINUTE, slow], missing=3, unanswered=4_000))
    head, _, first, second, mean, _, count = lines.splitlines()
    assert first == (
        "| 1 | 32,000 | 30.0 | 40.0 | 8.0 | 5.0 | 6.0 | 150 | 90 | 800 | 2,000 | 1.5 | 10.0 | 50.0 | 20.0 | 2.0 |"
        " 12 | 7 | 30 | 300 | 200 | 100 | 3 | 0 |"
    )
    assert second.startswith("| 2 | 16,000 |")
    assert "| 2,000 | – | 10.0 | – | 20.0 | 2.0 | 12 |" in second
    assert mean.startswith("| mean | 24,000 | 30.0 | 40.0 | 8.0 | 5.0 | 6.0 | 150 | 90 | 800 | 2,000 | – | 10.0 | – |")
    assert mean.endswith("|  |  |  |  |  |  |  | 2 |")
    assert {line.count("|") for line in (head, first, second, mean)} == {25}
    assert count == (
        "At the end 1,000 rows were stored; 3 that were answered 201 were missing. "
        "4,000 that were due were not answered 201."
    )


def test_level_soak_meets_its_goals() -> None:
    """A soak whose minutes are alike meets all goals, even if the first minute differs."""
    first = replace(MINUTE, post_ms=[500.0], get_raw_ms=[90.0])
    assert set(verdicts(soak([first, *[MINUTE] * 7])).values()) == {"met"}


@pytest.mark.parametrize(
    ("change", "goal"),
    [
        ({"maintenance_cores": 0.6}, "maintenance"),
        ({"post_ms": [38.0]}, "POST p50 from minute 2 on"),
        ({"get_minutes_ms": [5.9]}, "GET minutes p50 from minute 2 on"),
        ({"get_raw_ms": [9.0]}, "GET raw p50 from minute 2 on"),
        ({"get_past_ms": [9.0]}, "GET past p50 from minute 2 on"),
        ({"rows": 1_200_000}, "rows/s from minute 2 on"),
        ({"errors": 1}, "errors"),
    ],
)
def test_one_bad_minute(change: dict[str, float], goal: str) -> None:
    """One minute that differs is enough to miss the goal that it concerns, and no other."""
    changed = replace(MINUTE, **change)  # type: ignore[arg-type]
    found = verdicts(soak([*[MINUTE] * 7, changed]))
    assert {text for text, verdict in found.items() if verdict != "met"} == {goal}


@pytest.mark.parametrize(
    ("change", "goal"),
    [
        ({"server_mb": 170.0}, "memory of the server"),
        ({"database_mb": 100.0}, "memory of the database without shared buffers"),
    ],
)
def test_growing_memory(change: dict[str, float], goal: str) -> None:
    """Memory may be high in a minute, but not in all minutes of the last quarter."""
    changed = replace(MINUTE, **change)  # type: ignore[arg-type]
    assert set(verdicts(soak([*[MINUTE] * 7, changed])).values()) == {"met"}
    found = verdicts(soak([*[MINUTE] * 6, changed, changed]))
    assert [text for text, verdict in found.items() if verdict != "met"] == [goal]


def test_lost_rows_are_errors() -> None:
    """A row that was answered 201 and is not stored is an error."""
    assert verdicts(soak([MINUTE] * 8, missing=1))["errors"] == "**not met**"


def test_unmeasured_is_not_met() -> None:
    """A minute without answers, processes that can't be read, and a soak without quarters leave goals unmeasured."""
    blind = replace(MINUTE, post_ms=[], maintenance_cores=None, database_mb=None)
    found = verdicts(soak([MINUTE, blind, MINUTE]))
    assert {text for text, verdict in found.items() if verdict == "not measured"} == {
        "maintenance",
        "POST p50 from minute 2 on",
        "memory of the server",
        "memory of the database without shared buffers",
    }
