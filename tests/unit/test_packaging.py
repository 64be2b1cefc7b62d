"""What the repository says of itself: its version, and what it needs."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import app
from app.__main__ import main

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
ON_WINDOWS = """
import runpy, sys
sys.platform = "win32"
sys.modules.update(dict.fromkeys(["fcntl", "pwd", "resource"]))  # so that importing them fails, as there
sys.argv = ["app", "serve"]
runpy.run_module("app", run_name="__main__")
"""
OURS = {"app", "benchmarks", "grafana", "tests"}


def requirements_in(name: str) -> Iterator[Requirement]:
    """Yield the requirements of a file, and of those that it includes."""
    for line in (REPOSITORY / name).read_text().replace("\\\n", " ").splitlines():
        entry = line.partition(" --hash")[0].strip()
        if entry.startswith("-r "):
            yield from requirements_in(entry.removeprefix("-r "))
        elif entry and not entry.startswith("#"):
            yield Requirement(entry)


def imported_by(folder: str) -> set[str]:
    """Return the top-level modules that a folder's files import from elsewhere."""
    names = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - OURS - set(sys.stdlib_module_names)


def test_one_version() -> None:
    """The version is written once, in ``app/__init__.py``, and is a release number."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", app.__version__)
    assert "version" not in PYPROJECT["project"]
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "app.__version__"}


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m app --version`` shows it."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"SensorFlow {app.__version__}\n"


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


@pytest.mark.parametrize(
    ("folder", "requirements"),
    [
        ("app", "requirements.txt"),
        ("alembic", "requirements.txt"),
        ("grafana", "requirements.txt"),
        ("benchmarks", "requirements-dev.txt"),
        ("tests", "requirements-dev.txt"),
    ],
)
def test_imports_are_required(folder: str, requirements: str) -> None:
    """Each package that is imported is required by name, not only by another package."""
    assert (REPOSITORY / folder).is_dir()
    required = {canonicalize_name(requirement.name) for requirement in requirements_in(requirements)}
    distributions = packages_distributions()
    undeclared = {
        module
        for module in imported_by(folder)
        if not required & {canonicalize_name(name) for name in distributions.get(module, [])}
    }
    assert undeclared == set()


def test_windows_is_refused_in_words() -> None:
    """On Windows the command says where the server runs, without a traceback."""
    run = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert re.fullmatch(r"sensorflow: Windows is not supported\..* WSL 2 .*Docker.*\n", run.stderr)
    assert all(way in (REPOSITORY / "README.md").read_text() for way in ("WSL 2", "Docker", "macOS"))
