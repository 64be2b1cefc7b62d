"""The repository's version and requirements agree everywhere."""

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
    """The linters check the oldest Python that is supported."""
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"Python {oldest} or newer" in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize(
    ("folder", "requirements"),
    [
        ("app", "requirements.txt"),
        ("alembic", "requirements.txt"),
        ("grafana", "requirements-dev.txt"),
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


def test_lock_has_every_requirement() -> None:
    """``requirements.lock`` has each requirement, under the same condition and in the version that it asks for."""
    locked = {(canonicalize_name(entry.name), entry.marker): entry for entry in requirements_in("requirements.lock")}
    for requirement in requirements_in("requirements.txt"):
        names = [entry for (name, _), entry in locked.items() if name == canonicalize_name(requirement.name)]
        [entry] = names if len(names) == 1 else [entry for entry in names if entry.marker == requirement.marker]
        [version] = entry.specifier
        assert version.operator == "=="
        assert version.version in requirement.specifier, requirement.name


def test_lock_has_every_hash_and_no_host() -> None:
    """Each package of the lock has hashes, and where it comes from is left to pip."""
    text = (REPOSITORY / "requirements.lock").read_text()
    entries = re.split(r"(?<!\\)\n", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in text
    assert "--index-url" not in text


def test_lock_is_where_it_is_installed() -> None:
    """README and the image install the lock with hashes only, and CONTRIBUTING says how to renew it."""
    install = "--require-hashes -r requirements.lock"
    assert f".venv/bin/pip install {install}" in (REPOSITORY / "README.md").read_text()
    assert "--require-hashes -r server.lock" in (REPOSITORY / "Dockerfile").read_text()
    renewal = (REPOSITORY / "requirements.lock").read_text().splitlines()[1].removeprefix("#").strip()
    assert renewal.startswith("uv pip compile requirements.txt --universal --python-version 3.11 --generate-hashes")
    assert renewal in (REPOSITORY / "CONTRIBUTING.md").read_text()
