"""What the repository says of itself: its version, and what it needs."""

import re
import tomllib
from pathlib import Path

import app

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_one_version() -> None:
    """The version is written once, in ``app/__init__.py``, and is a release number."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", app.__version__)
    assert "version" not in PYPROJECT["project"]
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "app.__version__"}


def test_one_list_of_dependencies() -> None:
    """The dependencies are those of ``requirements.txt``."""
    assert "dependencies" not in PYPROJECT["project"]
    assert "dependencies" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_python_versions_agree() -> None:
    """What the linters check is the oldest Python that is promised."""
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"Python {oldest} or newer" in (REPOSITORY / "README.md").read_text()
