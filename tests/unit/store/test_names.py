"""Ids of names on a database that is none."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pyarrow as pa

from app.store.names import MIN_REMEMBERED_NAMES, SensorIds


class Sensors:
    """A table of sensors, its own connection and cursor; answers take as long as it is told, one after the other."""

    def __init__(self, *delays_s: float) -> None:
        self.ids: dict[str, int] = {}
        self._delays_s = iter(delays_s)
        self._rows: list[tuple[int, str]] = []

    @asynccontextmanager
    async def borrow(self, *, timeout_s: float) -> AsyncIterator["Sensors"]:  # noqa: ARG002
        await asyncio.sleep(next(self._delays_s))
        yield self

    async def execute(self, _: object, lists: Sequence[Sequence[str]]) -> "Sensors":
        self._rows = [(self.ids.setdefault(name, len(self.ids) + 1), name) for name in lists[0]]
        return self

    async def fetchall(self) -> list[tuple[int, str]]:
        return self._rows


async def test_an_array_that_becomes_known_while_another_is_asked_for_is_not_taken_for_it() -> None:
    table = Sensors(2, 1)
    sensors = SensorIds(cast("Any", table), timeout_s=9)
    first, second = (pa.array([f"{letter}{n}" for n in range(MIN_REMEMBERED_NAMES)]) for letter in "ab")
    slow = asyncio.create_task(sensors.ids_of_all(["alone"], [first, second]))
    await asyncio.sleep(0.5)
    await sensors.ids_of_all([], [first])
    (alone,), of_arrays = await slow
    assert alone == table.ids["alone"]
    for array, ids in zip((first, second), of_arrays, strict=True):
        assert ids.to_pylist() == [table.ids[name] for name in array.to_pylist()]
    _, (again,) = await sensors.ids_of_all([], [second])
    assert again.equals(of_arrays[1])
