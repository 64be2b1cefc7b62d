"""Log lines: one form for every logger, exceptions included, and no library that would write a key."""

import io
import logging
import math
import re
import time
from collections.abc import Iterator

import orjson
import pytest

from app.logs import BURST, MAX_KINDS, QUIET, WINDOW_S, Throttle, ThrottledHandler, configure_logging

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
LOUD = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "websockets", "websockets.server", "psycopg.pool")
logger = logging.getLogger("app.somewhere")


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in (None, *QUIET)}
    monkeypatch.setattr(logging.root, "handlers", [])
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def fail() -> None:
    try:
        raise KeyError("greenhouse-1")
    except KeyError:
        logger.exception("it broke")


def test_a_text_line_has_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", as_json=False)
    logger.info("flush of %d rows", 7)
    logger.debug("not at this level")
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"{TIME} INFO flush of 7 rows\n", err)
    assert out == "", "standard output belongs to the greeting"


def test_a_terminal_gets_colours_and_a_file_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    configure_logging(level="INFO", as_json=False)
    logger.warning("careful")
    assert re.fullmatch(rf"{TIME} \x1b\[33mWARNING\x1b\[0m careful\n", capsys.readouterr().err)


def test_a_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", as_json=True)
    logger.warning('two\nlines and "quotes" of %s', "greenhouse-1")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    event = orjson.loads(line)
    assert re.fullmatch(TIME, event.pop("time"))
    assert event == {
        "level": "WARNING",
        "logger": "app.somewhere",
        "message": 'two\nlines and "quotes" of greenhouse-1',
    }


def test_an_exception_is_told_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", as_json=False)
    fail()
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR it broke")
    assert others[0] == "Traceback (most recent call last):"
    assert others[-1] == "KeyError: 'greenhouse-1'"


def test_an_exception_is_told_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", as_json=True)
    fail()
    [line] = capsys.readouterr().err.splitlines()
    event = orjson.loads(line)
    assert (event["level"], event["message"]) == ("ERROR", "it broke")
    assert event["exception"].endswith("KeyError: 'greenhouse-1'")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_is_written_whatever_its_message_holds(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    """A line is written even with text that is no UTF-8. Like the real one, this standard error escapes it."""
    configure_logging(level="INFO", as_json=as_json)
    logger.error("can't read %s", "caf\udce9")
    [line] = capfd.readouterr().err.splitlines()
    assert "can't read caf" in line


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
@pytest.mark.parametrize("name", LOUD)
def test_a_library_that_writes_keys_speaks_only_of_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, level: str
) -> None:
    """A library that writes keys logs only warnings: at INFO or DEBUG it writes a WebSocket's query string."""
    monkeypatch.setattr(logging.getLogger(name), "propagate", True)  # uvicorn's own settings, in another test, end it
    configure_logging(level=level, as_json=False)
    for quiet in (logging.DEBUG, logging.INFO):
        logging.getLogger(name).log(quiet, "GET /ws/sensor_updates?api-key=correct-horse-battery")
    assert capsys.readouterr().err == ""
    logging.getLogger(name).warning("this is one")
    assert capsys.readouterr().err.endswith("WARNING this is one\n")


def record(
    message: str,
    *arguments: object,
    level: int = logging.WARNING,
    kind: object = None,
    name: str = "app.somewhere",
) -> logging.LogRecord:
    """Return a log line, with its own kind if one is given."""
    made = logging.LogRecord(name, level, __file__, 1, message, arguments, None)
    if kind is not None:
        made.kind = kind
    return made


def test_alike_lines_are_bounded() -> None:
    """A few of many alike lines are written in a window, then one a window with the number left out."""
    throttle = Throttle()
    assert [throttle.admits(record("row %d", n), 0.0) for n in range(100)] == [True] * BURST + [False] * (100 - BURST)
    assert throttle.admits(record("another"), 0.0)
    assert list(throttle.ended(WINDOW_S - 0.1)) == []
    assert [(last.getMessage(), count) for last, count in throttle.ended(WINDOW_S)] == [("row 99", 100 - BURST)]
    assert not throttle.admits(record("row %d", 100), WINDOW_S + 0.1)
    assert [count for _, count in throttle.ended(2 * WINDOW_S)] == [1]
    assert list(throttle.ended(3 * WINDOW_S)) == []
    assert not throttle.has_left_out
    assert throttle.admits(record("row %d", 101), 4 * WINDOW_S)


def test_line_with_kind_comes_once_a_window() -> None:
    """A line that names its kind is written once a window, whatever its arguments are."""
    throttle = Throttle()
    assert [throttle.admits(record("%s", n, kind="sender"), 0.0) for n in range(3)] == [True, False, False]
    assert throttle.admits(record("%s", 1, kind="other sender"), 0.0)


def test_kinds_are_bounded() -> None:
    """However many kinds there are, the lines of a window are bounded, and so is what is remembered."""
    throttle = Throttle()
    written = sum(throttle.admits(record("refused", kind=n), n / 1_000) for n in range(10_000))
    assert written <= MAX_KINDS + BURST
    assert sum(count for _, count in throttle.ended(math.inf)) == 10_000 - written


def test_many_kinds_hide_no_error() -> None:
    """Many lines of one logger about many senders hide no error, of another logger or its own."""
    throttle = Throttle()
    for sender in range(10_000):
        throttle.admits(record("refused", kind=sender), 0.0)
    assert throttle.admits(record("the database is away", name="app.elsewhere"), 0.0)
    assert throttle.admits(record("it broke", level=logging.ERROR), 0.0)


def test_good_news_is_told_one_by_one() -> None:
    """INFO lines that differ are all written, but not one that repeats."""
    throttle = Throttle()
    assert all(throttle.admits(record("worker %d", n, level=logging.INFO), 0.0) for n in range(20))
    assert sum(throttle.admits(record("back again", level=logging.INFO), 0.0) for _ in range(20)) == BURST


def test_left_out_lines_are_told_at_the_end() -> None:
    """The end of the process reports the lines that were left out."""
    stream = io.StringIO()
    handler = ThrottledHandler(stream, clock=lambda: 0.0)
    for number in range(1_000 + BURST):
        handler.handle(record("row %d", number))
    assert stream.getvalue().count("\n") == BURST
    handler.close()
    assert stream.getvalue().splitlines()[-1] == f"row {999 + BURST} (1,000 such lines in the last minute)"


def test_left_out_lines_are_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that were left out are reported a window later, though nothing more is logged."""
    monkeypatch.setattr("app.logs.WINDOW_S", 0.05)
    stream = io.StringIO()
    handler = ThrottledHandler(stream)
    for _ in range(BURST + 1):
        handler.handle(record("alike"))
    time.sleep(0.01)
    handler.handle(record("of a later window"))
    for _ in range(BURST):
        handler.handle(record("of a later window"))
    deadline = time.monotonic() + 5
    while stream.getvalue().count("such lines") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    handler.close()
