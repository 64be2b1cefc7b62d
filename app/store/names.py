"""Names to ids: sensors and sources, made when first seen and remembered from then on.

An id is remembered only once it is committed, so a flush that fails can't leave an id behind that no row has.
"""

from collections.abc import Sequence
from itertools import chain, islice
from typing import Generic, TypeVar, cast

import psycopg
import pyarrow as pa
from psycopg import sql

from app.store.arrays import key_of
from app.store.database import Database

MAX_REMEMBERED = 1_000_000
"""Names: some 100 MB. Beyond it they are forgotten, and asked for again when they come."""
MAX_REMEMBERED_BYTES = 16 << 20
"""Of arrays of names: those that 80 gateways with 10,000 sensors each send. Beyond it they are forgotten likewise."""
MIN_REMEMBERED_NAMES = 100
"""Smaller arrays gain little, and may be of very many kinds."""
ARRAY_BYTES = 800
"""What remembering an array takes beside its bytes and its ids."""

Name = TypeVar("Name", str, tuple[str, ...])


class NameIds(Generic[Name]):
    """The ids of one table's names.

    Args:
        database: where the table is.
        table: has a column ``id`` and the text columns of ``key``, which are unique together.
        key: the columns that make up a name: a string where it is one, a tuple where there are more.
        timeout_s: how long the database may take to answer.
    """

    def __init__(self, database: Database, table: str, key: Sequence[str], *, timeout_s: float) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, key))
        lists = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(key))
        arguments = {"table": sql.Identifier(table), "columns": columns, "lists": lists}
        # In the order of the names: two processes that add the same new names in two orders would deadlock.
        self._add = sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT * FROM unnest({lists}) ORDER BY {order}"
            " ON CONFLICT ({columns}) DO NOTHING"
        ).format(order=sql.SQL(", ").join(sql.Literal(place + 1) for place in range(len(key))), **arguments)
        self._find = sql.SQL(
            "SELECT id, {columns} FROM {table} WHERE ({columns}) IN (SELECT * FROM unnest({lists}))"
        ).format(**arguments)
        self._database = database
        self._timeout_s = timeout_s
        self._is_one_column = len(key) == 1
        self._ids: dict[Name, int] = {}

    def forget(self) -> None:
        """Asks again for every name: a database reached anew may be another one, after a failover or a restore."""
        self._ids = {}  # and not cleared: the one before may be in use

    async def ids_of(self, names: Sequence[Name]) -> list[int]:
        """The id of each, in their order. New ones are added, and committed, at once.

        Raises:
            DatabaseAway: there are new ones, and the database can't be asked; nothing is remembered then.
        """
        if len(self._ids) > MAX_REMEMBERED:
            self.forget()
        known = self._ids
        ids = list(map(known.get, names))
        if None not in ids:
            return cast("list[int]", ids)
        new = list(dict.fromkeys(name for name, id_ in zip(names, ids, strict=True) if id_ is None))
        lists = [new] if self._is_one_column else list(map(list, zip(*new, strict=True)))
        async with self._database.borrow(timeout_s=self._timeout_s) as connection:
            await connection.execute(self._add, lists)
            rows = await (await connection.execute(self._find, lists)).fetchall()
            found = {name[0] if self._is_one_column else tuple(name): id_ for id_, *name in rows}
            if missing := [name for name in new if name not in found]:
                raise psycopg.DataError(f"no id came back for {missing[0]!r}")
        known.update(found)
        return [known[name] for name in names]


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

    def forget(self) -> None:
        super().forget()
        self._arrays, self._arrays_bytes = {}, 0

    async def ids_of_all(
        self, names: Sequence[str], arrays: Sequence[pa.StringArray]
    ) -> tuple[list[int], list[pa.Int32Array]]:
        """The id of each name, and those of each array, in which none may be null; as ``ids_of``."""
        known = self._arrays
        keys = [key_of(array) for array in arrays]
        found = [known.get(key) for key in keys]
        unknown = [array for array, of_array in zip(arrays, found, strict=True) if of_array is None]
        ids = iter(await self.ids_of([*names, *chain.from_iterable(array.to_pylist() for array in unknown)]))
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
        if key in self._arrays or len(ids) < MIN_REMEMBERED_NAMES or size_bytes > MAX_REMEMBERED_BYTES:
            return
        self._arrays_bytes += size_bytes
        if self._arrays_bytes > MAX_REMEMBERED_BYTES:
            self._arrays, self._arrays_bytes = {}, size_bytes
        self._arrays[key] = ids
