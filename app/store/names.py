"""Names to ids: sensors and sources, looked up, added when first seen, and remembered from then on.

Promises:
    * An id is remembered only once it is committed, so a flush that fails can't leave an id behind that no row has.
    * Names are looked up before any is added: one that has an id never uses up another value of the identity, of which
      there are 2,147,483,647 for as long as the database lives.
    * No statement is about more than PIECE_NAMES names, and each piece is committed and remembered by itself: whatever
      ends the work, what was done of it is not done again.
    * What is remembered takes a bounded number of bytes. The names that were not asked for longest go first.
    * A table that another session has locked is waited for as long as the caller says.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Generic, TypeVar, cast

import pyarrow as pa
from psycopg import sql
from psycopg.errors import LockNotAvailable, SequenceGeneratorLimitExceeded

from app.errors import DatabaseLocked, DatabaseUnavailable
from app.store.arrays import array_fingerprint
from app.store.database import Connection, Database

PIECE_NAMES = 5_000
"""As many as PostgreSQL adds in a tenth of a second, and finds in a hundredth."""
MAX_REMEMBERED_BYTES = 96 << 20
"""Bytes of names, in each process: some 500,000 of 20 characters."""
NAME_BYTES = 150
"""What remembering a name takes beside its characters, as measured with a million of them: 137 with 24 characters each,
and up to 170 while their dict grows."""
MAX_ARRAYS_BYTES = 16 << 20
"""Bytes of arrays of names: those that 80 gateways with 10,000 sensors each send. Beyond it they are forgotten."""
MIN_REMEMBERED_NAMES = 100
"""Smaller arrays gain little, and may be of very many kinds."""
ARRAY_BYTES = 800
"""What remembering an array takes beside its bytes and its ids."""
SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %s || 'ms', true)"

Name = TypeVar("Name", str, tuple[str, ...])
Item = TypeVar("Item")


class Remembered(Generic[Name]):
    """The ids of names in two generations, within a number of bytes: pure.

    A name that is asked for moves to the younger generation. Once that has taken up its half, it becomes the older one,
    and what was not asked for meanwhile is gone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._recent: dict[Name, int] = {}
        self._recent_bytes = 0
        self._older: dict[Name, int] = {}

    def __len__(self) -> int:
        """Return the number of names. A name in both generations counts twice."""
        return len(self._recent) + len(self._older)

    def ids_of(self, names: Sequence[Name]) -> list[int | None]:
        """Return the id of each, in their order. None where it is not remembered."""
        ids: list[int | None] = list(map(self._recent.get, names))
        if None in ids and self._older:
            older = self._older
            for index, name in enumerate(names):
                if ids[index] is None and (id_ := older.get(name)) is not None:
                    ids[index] = id_
                    self._add(name, id_)
        return ids

    def update(self, ids: Mapping[Name, int]) -> None:
        """Remember these ids of names."""
        for name, id_ in ids.items():
            self._add(name, id_)

    def _add(self, name: Name, id_: int) -> None:
        if name in self._recent:
            return
        self._recent[name] = id_
        self._recent_bytes += NAME_BYTES + (len(name) if isinstance(name, str) else sum(map(len, name)))
        if self._recent_bytes > self._max_bytes // 2:
            self._recent, self._older, self._recent_bytes = {}, self._recent, 0


class NameIds(Generic[Name]):
    """The ids of one table's names.

    Args:
        database: where the table is.
        table: has a column ``id`` and the text columns of ``key``, which are unique together.
        key: the columns that make up a name: a string where it is one, a tuple where there are more.
        timeout_s: how long the database may take to answer for PIECE_NAMES names.
        touch: an UPDATE of what is found, as a list of ids; it is asked for again, and touched, ``touch_every_s``.
        max_bytes: of what is remembered.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        key: Sequence[str],
        *,
        timeout_s: float,
        touch: str | None = None,
        touch_every_s: float = math.inf,
        max_bytes: int = MAX_REMEMBERED_BYTES,
    ) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, key))
        lists = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(key))
        arguments = {"table": sql.Identifier(table), "columns": columns, "lists": lists}
        # In the order of the names: two processes that add the same new names in two orders would deadlock.
        self._add = sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT * FROM unnest({lists}) ORDER BY {order}"
            " ON CONFLICT ({columns}) DO NOTHING RETURNING id, {columns}"
        ).format(order=sql.SQL(", ").join(sql.Literal(index + 1) for index in range(len(key))), **arguments)
        self._find = sql.SQL(
            "SELECT id, {columns} FROM {table} WHERE ({columns}) IN (SELECT * FROM unnest({lists}))"
        ).format(**arguments)
        self.no_id_left = (
            f"The table {table} has used up its 2,147,483,647 ids, so new names are rejected. Readings of known names "
            "are still stored."
        )
        """Why a name has no id."""
        self._table = table
        self._database = database
        self._timeout_s = timeout_s
        self._touch = touch
        self._touch_every_s = touch_every_s
        self._forget_at = math.inf
        self._max_bytes = max_bytes
        self._is_one_column = len(key) == 1
        self._remembered: Remembered[Name] = Remembered(max_bytes)

    def forget(self) -> None:
        """Asks again for every name: a database reached anew may be another one, after a failover or a restore."""
        self._remembered = Remembered(self._max_bytes)  # and not cleared: the one before may be in use
        self._forget_at = asyncio.get_running_loop().time() + self._touch_every_s

    def has_new(self, name: Name) -> bool:
        """Return whether a name is not remembered."""
        return None in self._remembered.ids_of([name])

    async def ids_of(self, names: Sequence[Name], *, lock_timeout_s: float) -> list[int | None]:
        """Return the id of each name, in order. Add and commit new names at once. None: the ids are used up, and
        ``no_id_left`` says so.

        Raises:
            DatabaseUnavailable: there are some that are not remembered, and the database can't be asked. Those that it
                has answered for are remembered all the same.
            DatabaseLocked: the same, because another session has locked the table, or a name in it, for too long.
        """
        before = self._remembered
        if self._touch and asyncio.get_running_loop().time() > self._forget_at:
            self.forget()
        remembered = self._remembered
        ids = remembered.ids_of(names)
        if None not in ids:
            return ids
        new = sorted({name for name, id_ in zip(names, ids, strict=True) if id_ is None})
        found: dict[Name, int] = {}
        try:
            for piece in _pieces(new, PIECE_NAMES):
                of_piece = await self._ids_of_piece(piece, lock_timeout_s)
                remembered.update(of_piece)
                found |= of_piece
        except DatabaseLocked:
            if self._remembered is remembered:  # and not forgotten meanwhile
                self._remembered = before
            raise
        return [found.get(name) if id_ is None else id_ for name, id_ in zip(names, ids, strict=True)]

    async def _ids_of_piece(self, names: Sequence[Name], lock_timeout_s: float) -> dict[Name, int]:
        """Return the ids of names that are not remembered, as far as they could be had."""
        found: dict[Name, int] = {}
        async with self._database.connection(timeout_s=self._timeout_s) as connection:
            try:
                async with connection.transaction():
                    await connection.execute(SET_LOCK_TIMEOUT, [max(1, round(lock_timeout_s * 1_000))])
                    found = await self._ids_by(connection, self._find, names)
                    if found and self._touch:
                        with suppress(LockNotAvailable):  # another hour will do
                            async with connection.transaction():
                                await connection.execute(self._touch, [list(found.values())])
                    if new := [name for name in names if name not in found]:
                        added = await self._ids_by(connection, self._add, new)
                        # Names that are still missing were added by another process meanwhile.
                        if missing := [name for name in new if name not in added]:
                            added |= await self._ids_by(connection, self._find, missing)
                        if missing := [name for name in missing if name not in added]:
                            raise DatabaseUnavailable(f"the database returned no id for {missing[0]!r}")
                        found |= added
            except LockNotAvailable as error:
                raise DatabaseLocked(f"another session has locked the table {self._table}") from error
            except SequenceGeneratorLimitExceeded:
                pass
        return found

    async def _ids_by(self, connection: Connection, statement: sql.Composed, names: Sequence[Name]) -> dict[Name, int]:
        lists = [names] if self._is_one_column else list(map(list, zip(*names, strict=True)))
        rows = await (await connection.execute(statement, lists)).fetchall()
        return {cast("Name", name[0] if self._is_one_column else tuple(name)): id_ for id_, *name in rows}


class SensorIds(NameIds[str]):
    """The ids of sensors, of names that came alone and of whole arrays.

    A gateway sends the same sensors again and again, and mostly in the same order. So arrays are known, too, by their
    bytes: that takes 0.02 µs a name, where a busy processor's caches make it 0.4 to get each out of Arrow and find it
    in a dict.
    """

    def __init__(self, database: Database, *, timeout_s: float) -> None:
        super().__init__(database, "sensors", ["name"], timeout_s=timeout_s)
        self._arrays: dict[bytes, pa.Int32Array] = {}
        self._arrays_bytes = 0
        self._turns = asyncio.Semaphore(1)

    def forget(self) -> None:
        super().forget()
        self._arrays, self._arrays_bytes = {}, 0

    def unknown_of(self, array: pa.StringArray) -> list[str]:
        """Those of an array's names that are not remembered."""
        key = array_fingerprint(array)
        if key in self._arrays:
            return []
        names = array.to_pylist()
        ids = self._remembered.ids_of(names)
        unknown = [name for name, id_ in zip(names, ids, strict=True) if id_ is None]
        if not unknown:
            self._remember(key, pa.array(ids, pa.int32()))
        return unknown

    async def learn(self, array: pa.StringArray, *, lock_timeout_s: float) -> None:
        """Look up an array's names that are not remembered, and add missing ones. Raises DatabaseUnavailable.

        Arrays take turns, a piece each: one with few names does not wait until one with many is done.
        """
        for piece in _pieces(self.unknown_of(array), PIECE_NAMES):
            async with self._turns:
                await self.ids_of(piece, lock_timeout_s=lock_timeout_s)

    async def ids_of_all(
        self, names: Sequence[str], arrays: Sequence[pa.StringArray], *, lock_timeout_s: float
    ) -> tuple[list[int | None], list[pa.Int32Array]]:
        """Return the id of each name, and the ids of each array, in which no name may be null. Like ``ids_of``, with
        null for None in an array.
        """
        known = self._arrays
        keys = [array_fingerprint(array) for array in arrays]
        found = [known.get(key) for key in keys]
        unknown = [array for array, of_array in zip(arrays, found, strict=True) if of_array is None]
        listed = [*names, *chain.from_iterable(array.to_pylist() for array in unknown)]
        ids = iter(await self.ids_of(listed, lock_timeout_s=lock_timeout_s))
        of_names = list(islice(ids, len(names)))
        of_arrays = [
            pa.array(list(islice(ids, len(array))), pa.int32()) if of_array is None else of_array
            for array, of_array in zip(arrays, found, strict=True)
        ]
        if known is self._arrays:  # and not forgotten meanwhile
            for key, of_array in zip(keys, of_arrays, strict=True):
                self._remember(key, of_array)
        return of_names, of_arrays

    def _remember(self, key: bytes, ids: pa.Int32Array) -> None:
        size_bytes = ARRAY_BYTES + len(key) + ids.nbytes
        if key in self._arrays or len(ids) < MIN_REMEMBERED_NAMES or size_bytes > MAX_ARRAYS_BYTES or ids.null_count:
            return
        self._arrays_bytes += size_bytes
        if self._arrays_bytes > MAX_ARRAYS_BYTES:
            self._arrays, self._arrays_bytes = {}, size_bytes
        self._arrays[key] = ids


def _pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
