"""Names to ids: sensors and sources, made when first seen and remembered from then on.

An id is remembered only once it is committed, so a flush that fails can't leave an id behind that no row has.
"""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from app.store.database import Connection


class NameIds:
    """The ids of one table's names.

    Args:
        table: has a column ``id`` and the text columns of ``key``, which are unique together.
        key: the columns that make up a name.
    """

    def __init__(self, table: str, key: Sequence[str]) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, key))
        lists = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(key))
        arguments = {"table": sql.Identifier(table), "columns": columns, "lists": lists}
        # In the order of the names: two processes that add the same new names in two orders would deadlock.
        self._add = sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT DISTINCT * FROM unnest({lists}) ORDER BY {order} "
            "ON CONFLICT DO NOTHING"
        ).format(order=sql.SQL(", ").join(sql.Literal(place + 1) for place in range(len(key))), **arguments)
        self._find = sql.SQL(
            "SELECT id, {columns} FROM {table} WHERE ({columns}) IN (SELECT * FROM unnest({lists}))"
        ).format(**arguments)
        self._ids: dict[tuple[str, ...], int] = {}

    def forget(self) -> None:
        """Asks again for every name: a database reached anew may be another one, after a failover or a restore."""
        self._ids.clear()

    async def resolve(self, connection: Connection, names: Sequence[tuple[str, ...]]) -> list[int]:
        """The id of each name, in order. Those that are new are added, and committed, at once.

        Raises:
            psycopg.Error: as the driver does; nothing is remembered then.
        """
        known = self._ids
        new = [name for name in names if name not in known]
        if new:
            lists = list(map(list, zip(*new, strict=True)))
            await connection.execute(self._add, lists)
            rows = await (await connection.execute(self._find, lists)).fetchall()
            known.update({tuple(name): id_ for id_, *name in rows})
            if missing := [name for name in new if name not in known]:
                raise psycopg.DataError(f"no id came back for {missing[0]!r}")
        return [known[name] for name in names]
