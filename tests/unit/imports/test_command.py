"""What may be said to ``python -m app import``, and what it says of it."""

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
    with pytest.raises(ConfigurationError, match=r"'temp.*' twice"):
        import_files(Settings(), parser().parse_args(["a.csv", *options]), None)
