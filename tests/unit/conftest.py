"""Unit tests run in virtual time and without a time limit: they don't depend on the machine's speed."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.support.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Callable[[], VirtualTimeLoop]]:  # noqa: ARG001
    """Return the event loop of each asynchronous test here (a hook of pytest-asyncio)."""
    return {"virtual time": VirtualTimeLoop}
