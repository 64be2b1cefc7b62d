"""What may be said to ``python -m app import``, and what it says of it."""

import argparse

import pytest

from app.imports.command import add_arguments


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
