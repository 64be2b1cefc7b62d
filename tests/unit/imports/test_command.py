"""The options and messages of ``python -m app import``."""

import argparse

import pytest

from app.errors import ConfigurationError
from app.imports.command import add_arguments, import_files
from app.settings import Settings


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_arguments(made)
    return made


def test_units_of_times_are_shown_as_they_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "{auto,s,ms,us,ns}" in parser().format_help()
    assert parser().parse_args(["a.csv", "--precision", "ms"]).precision == "ms"
    with pytest.raises(SystemExit):
        parser().parse_args(["a.csv", "--precision", "h"])
    assert "Precision." not in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--sensor", "temp", "--column", "temperature=temp"),
        ("--column", "temperature=temp", "--column", "temperature=dewp"),
    ],
)
def test_options_that_would_override_each_other_are_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"'temp.*' is mapped twice"):
        import_files(Settings(), parser().parse_args(["a.csv", *options]), None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--time-format", "%d.%m."), "a day, a month and a year"),
        (("--time-format", "%Q"), "like '%d.%m.%Y %H:%M:%S'"),
        (("--time-zone", "Berlin"), "IANA time zone, like Europe/Madrid"),
        (("--sensor-name", " "), "1 to 255 characters"),
        (("--sensor-name", "x" * 256), "1 to 255 characters"),
    ],
)
def test_options_that_mean_nothing(options: tuple[str, ...], said: str) -> None:
    """An option that can't be meant ends the import before a file is read, and says what may be given."""
    with pytest.raises(ConfigurationError) as raised:
        import_files(Settings(), parser().parse_args(["a.csv", *options]), None)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "options", [("--sensor", "a", "--sensor-name", "b"), ("--skip-lines", "-1"), ("--decimal", ",")]
)
def test_options_that_are_misspelt(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["a.csv", *options])
    assert options[-2] in capsys.readouterr().err
