"""The rules of the architecture, by the syntax: pure modules are pure, and imports run downward only."""

import ast
import re
from graphlib import TopologicalSorter

import pytest

from app.schema import METRICS
from tests.support.modules import MODULES, ROOT

PURE = [
    "app.schema",
    "app.ingest.buffer",
    "app.ingest.batch",
    "app.ingest.blocked",
    "app.ingest.idempotency",
    "app.ingest.request",
    "app.ingest.result",
    "app.ingest.decode",
    "app.history",
    "app.registry",
    "app.live",
    "app.web.auth",
    "app.workers.messages",
    "app.workers.subscription_router",
]
IMPURE_MODULES = {
    *("asyncio", "threading", "concurrent", "subprocess", "socket", "ssl", "psycopg", "psycopg_pool"),
    *("time", "random", "secrets", "logging", "warnings", "os", "sys", "io", "pathlib", "app.settings"),
}
IMPURE_CALLS = {"open", "print", "input", "now", "utcnow", "today", "getenv"}
METRIC = re.compile(rf"(?<![a-z])({'|'.join(METRICS)})(?!_reading)")
"""A metric's name, but for those of the route /api/temperature_reading and its functions."""
NAMES_METRICS = {
    "app.schema": "it is where they are defined",
    "app.ingest.batch": "attributes of a Reading: a NamedTuple of constant fields is what mypy checks",
    "app.ingest.decode.reading": "the contract of /api/temperature_reading; its parser is straight code for speed",
    "app.ingest.result": "the contract of the same route and of /ws/sensor_updates; straight code for speed",
    "app.web.write_single": "the contract of the same route, in OpenAPI",
    "app.store.wire": "the packing of one reading; straight code for speed",
    "app.store.database": "columns of the original SensorFlow's table, which stay what they are",
}
DRIVERS = {"psycopg", "psycopg_pool", "sqlalchemy", "alembic"}


def is_in(module: str, room: str) -> bool:
    return f"{module}.".startswith(f"{room}.")


def modules_in(room: str) -> list[str]:
    found = [module for module in MODULES if is_in(module, room)]
    assert found, f"there is no {room}"
    return found


def imports(module: str) -> set[str]:
    """Return what a module imports, at its top or anywhere else."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} has a relative import"
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found


def calls(module: str) -> set[str]:
    functions = (node.func for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call))
    return {
        function.attr if isinstance(function, ast.Attribute) else function.id
        for function in functions
        if isinstance(function, ast.Attribute | ast.Name)
    }


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_has_no_clock_no_log_no_loop_and_no_environment(room: str) -> None:
    for module in modules_in(room):
        assert not [name for name in imports(module) for impure in IMPURE_MODULES if is_in(name, impure)]
        assert not calls(module) & IMPURE_CALLS


@pytest.mark.parametrize(
    ("room", "above"),
    [
        ("app.errors", ["app"]),
        ("app.schema", ["app"]),
        ("app.ingest", ["app.web", "app.live", "app.store", "app.workers", "app.metrics", "app.main", "app.settings"]),
        ("app.history", ["app.web", "app.live", "app.store", "app.workers", "app.metrics", "app.main", "app.settings"]),
        (
            "app.registry",
            ["app.web", "app.live", "app.store", "app.workers", "app.metrics", "app.main", "app.settings"],
        ),
        ("app.live", ["app.web", "app.store", "app.workers", "app.metrics", "app.main", "app.settings"]),
        ("app.store", ["app.web", "app.live", "app.workers", "app.metrics", "app.main", "app.settings"]),
        ("app.web", ["app.store", "app.workers", "app.metrics", "app.main", "app.settings"]),
        ("app.metrics", ["app.web", "app.workers", "app.main", "app.settings"]),
        ("app.workers", ["app.web", "app.store", "app.main", "app.settings"]),
        ("app.main", ["app.workers"]),
        ("app.settings", ["app.web", "app.live", "app.store", "app.ingest", "app.workers", "app.metrics", "app.main"]),
        ("app", ["app.__main__"]),
    ],
)
def test_imports_run_downward_only(room: str, above: list[str]) -> None:
    climbing = {
        f"{module} imports {name}"
        for module in modules_in(room)
        for name in imports(module)
        if any(is_in(name, floor) for floor in above)
    }
    assert climbing == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: imports(module) & MODULES.keys() for module in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("names", "who"),
    [
        ({"app.settings"}, {"app.main", "app.serve", "app.imports.command", "app.__main__"}),
        ({"app.main"}, {"app.serve", "app.imports.command"}),
        ({"app.serve", "app.imports.command"}, {"app.__main__"}),
    ],
)
def test_only_the_entrance_knows_the_settings_and_how_all_fits_together(names: set[str], who: set[str]) -> None:
    assert {module for module in MODULES if imports(module) & names} == who


def test_only_the_store_speaks_to_a_database() -> None:
    speakers = {module for module in MODULES for name in imports(module) if name.partition(".")[0] in DRIVERS}
    assert {module for module in speakers if not is_in(module, "app.store")} == set()
    assert "app.store.database" in speakers


def test_metrics_are_named_in_the_schema() -> None:
    """All modules but a few derive the columns and keys of metrics from ``app.schema``."""
    naming = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        for _, text in ast.iter_fields(node)
        if isinstance(text, str) and METRIC.search(text)
    }
    assert naming == NAMES_METRICS.keys()


def test_no_test_imports_another() -> None:
    """Helpers of several tests are in tests/support, or in a module of their folder without tests."""
    imported = {
        f"{path.relative_to(ROOT)} imports {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and re.search(r"^tests\.(.*\.)?(test_\w+|conftest)$", node.module or "")
    }
    assert imported == set()
