"""Ids of names, with a stand-in for the database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Any, cast

import pyarrow as pa
import pytest
from psycopg import sql

from app.errors import DatabaseUnavailable
from app.store.names import MIN_REMEMBERED_NAMES, NAME_BYTES, PIECE_NAMES, Remembered, SensorIds


class Sensors:
    """A table of sensors, its own connection and cursor. Answers take a given time, one after the other."""

    def __init__(self, *delays_s: float, answers: int = 1_000_000) -> None:
        self.ids: dict[str, int] = {}
        self.asked: list[Sequence[str]] = []
        """The names in each statement."""
        self._delays_s = chain(delays_s, repeat(0.0))
        self._answers = answers
        self._rows: list[tuple[int, str]] = []

    @asynccontextmanager
    async def connection(self, *, timeout_s: float) -> AsyncIterator["Sensors"]:  # noqa: ARG002
        await asyncio.sleep(next(self._delays_s))
        yield self

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield

    async def execute(self, statement: str | sql.Composed, lists: Sequence[Sequence[str]]) -> "Sensors":
        if isinstance(statement, str):
            return self
        if len(self.asked) == self._answers:
            raise DatabaseUnavailable("away")
        self.asked.append(lists[0])
        if "INSERT" in statement.as_string():
            self.ids |= {name: len(self.ids) + place for place, name in enumerate(lists[0], 1)}
        self._rows = [(self.ids[name], name) for name in lists[0] if name in self.ids]
        return self

    async def fetchall(self) -> list[tuple[int, str]]:
        return self._rows


async def test_an_array_that_becomes_known_while_another_is_asked_for_is_not_taken_for_it() -> None:
    table = Sensors(2, 1)
    sensors = SensorIds(cast("Any", table), timeout_s=9)
    first, second = (pa.array([f"{letter}{n}" for n in range(MIN_REMEMBERED_NAMES)]) for letter in "ab")
    slow = asyncio.create_task(sensors.ids_of_all(["alone"], [first, second], lock_timeout_s=1))
    await asyncio.sleep(0.5)
    await sensors.ids_of_all([], [first], lock_timeout_s=1)
    (alone,), of_arrays = await slow
    assert alone == table.ids["alone"]
    for array, ids in zip((first, second), of_arrays, strict=True):
        assert ids.to_pylist() == [table.ids[name] for name in array.to_pylist()]
    _, (again,) = await sensors.ids_of_all([], [second], lock_timeout_s=1)
    assert again.equals(of_arrays[1])


async def test_names_are_asked_for_in_pieces_that_are_kept() -> None:
    """A database that is lost in the middle has not been asked in vain."""
    table = Sensors(answers=4)
    sensors = SensorIds(cast("Any", table), timeout_s=9)
    names = [f"sensor {number}" for number in range(3 * PIECE_NAMES)]
    with pytest.raises(DatabaseUnavailable):
        await sensors.ids_of(names, lock_timeout_s=1)
    assert len(table.ids) == 2 * PIECE_NAMES
    assert len(sensors.unknown_of(pa.array(names))) == PIECE_NAMES
    table = sensors._database = Sensors()  # type: ignore[assignment]
    await sensors.ids_of(names, lock_timeout_s=1)
    assert [len(asked) for asked in table.asked] == [PIECE_NAMES, PIECE_NAMES]  # found, and added
    assert sensors.unknown_of(pa.array([*names, "other"])) == ["other"]


async def test_names_that_have_ids_are_only_looked_up() -> None:
    table = Sensors()
    table.ids = {"a": 1, "b": 2}
    sensors = SensorIds(cast("Any", table), timeout_s=9)
    assert await sensors.ids_of(["b", "a", "b"], lock_timeout_s=1) == [2, 1, 2]
    assert table.asked == [["a", "b"]]


def test_what_is_remembered_is_bounded_and_the_longest_unused_goes() -> None:
    """The remembered names are bounded, however many come, and names in use stay."""
    bound = 1_000
    remembered = Remembered[str](max_bytes=bound * (NAME_BYTES + 8))
    remembered.update({f"{0:08}": 0})
    for number in range(1, 10 * bound):
        remembered.update({f"{number:08}": number})
        assert remembered.ids_of([f"{0:08}"]) == [0]
    assert bound // 2 <= len(remembered) <= bound + 2
    assert remembered.ids_of([f"{1:08}", f"{10 * bound - 1:08}"]) == [None, 10 * bound - 1]
