"""Log lines: one form for every logger, exceptions included, and no library that would write a key."""

import logging
import re
from collections.abc import Iterator

import orjson
import pytest

from app.logs import QUIET, configure_logging

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
    """Such as a file's name that is no UTF-8; like the real one, this standard error takes what it can't encode."""
    configure_logging(level="INFO", as_json=as_json)
    logger.error("can't read %s", "caf\udce9")
    [line] = capfd.readouterr().err.splitlines()
    assert "can't read caf" in line


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
@pytest.mark.parametrize("name", LOUD)
def test_a_library_that_writes_keys_speaks_only_of_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, level: str
) -> None:
    """They write each WebSocket's path with its query string, at INFO or DEBUG."""
    monkeypatch.setattr(logging.getLogger(name), "propagate", True)  # uvicorn's own settings, in another test, end it
    configure_logging(level=level, as_json=False)
    for quiet in (logging.DEBUG, logging.INFO):
        logging.getLogger(name).log(quiet, "GET /ws/sensor_updates?api-key=correct-horse-battery")
    assert capsys.readouterr().err == ""
    logging.getLogger(name).warning("this is one")
    assert capsys.readouterr().err.endswith("WARNING this is one\n")
