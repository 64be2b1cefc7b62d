"""The registry of sensors: what is known of each, and its latest reading, which is a few seconds behind."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from app.errors import DatabaseUnavailable, InvalidSensor, NotFound
from app.registry import LatestReading, Limits, Sensor, SensorChange
from app.schema import METRIC_COLUMNS, METRICS
from app.store.database import Connection, Database
from app.store.durability import SEND_WARNINGS, confirmed

TIMEOUT_S = 10.0

SENSORS = """
SELECT v.*, (
    SELECT coalesce(json_object_agg(l.metric, json_build_object('lower', l.lower, 'upper', l.upper)), '{{}}')
    FROM sensor_limits l WHERE l.sensor_id = v.sensor_id
) AS limits
FROM sensor_status v
WHERE {condition} ORDER BY v.name LIMIT %(limit)s
"""
ONE = SENSORS.format(condition="v.name = %(name)s")
PAGE = SENSORS.format(
    condition="v.name > %(after)s AND v.name <= %(until)s AND (%(online)s::boolean IS NULL OR v.is_online = %(online)s)"
)
LATEST_PAGE = f"""
SELECT name, last_seen_at, {METRIC_COLUMNS} FROM sensor_status
WHERE name > %(after)s AND name <= %(until)s AND last_seen_at IS NOT NULL ORDER BY name LIMIT %(limit)s
"""
# Where few sensors of very many are asked for, a statement looks at some of them at a time.
LONGEST_STRETCH = 20_000
UNTIL = "SELECT max(name) FROM (SELECT name FROM sensors WHERE name > %s ORDER BY name LIMIT %s) AS stretch"

# One who changes a sensor after the other; those who only refer to it, as new limits do, need not wait.
LOCK = f"SELECT id, {SEND_WARNINGS} FROM sensors WHERE name = %s FOR NO KEY UPDATE"
CREATE = f"INSERT INTO sensors (name) VALUES (%s) ON CONFLICT (name) DO NOTHING RETURNING id, {SEND_WARNINGS}"
KNOWN_METRICS = "SELECT name FROM metrics ORDER BY name"
LIMITS = "SELECT metric, lower, upper FROM sensor_limits WHERE sensor_id = %s"
UPDATE = sql.SQL("UPDATE sensors SET {changes} WHERE id = %(id)s")
DELETE_LIMITS = "DELETE FROM sensor_limits WHERE sensor_id = %s"
INSERT_LIMITS = "INSERT INTO sensor_limits (sensor_id, metric, lower, upper) VALUES (%s, %s, %s, %s)"


class Sensors:
    """The registry in a database. Its methods raise DatabaseUnavailable.

    Args:
        database: where it is.
        on_new_limits: is awaited when limits have been changed; what this process commits is then held against them.
    """

    def __init__(self, database: Database, *, on_new_limits: Callable[[], Awaitable[None]]) -> None:
        self._database = database
        self._on_new_limits = on_new_limits

    async def page(self, *, after: str, limit: int, online: bool | None) -> list[Sensor]:
        """Return the sensors whose names come after ``after``, by name. ``online`` keeps those online or offline."""
        return [_sensor(row) for row in await self._page(PAGE, after=after, limit=limit, online=online)]

    async def latest(self, *, after: str, limit: int) -> list[LatestReading]:
        """Return the latest readings of the sensors that have one and whose names come after ``after``, by name."""
        return [_latest(row) for row in await self._page(LATEST_PAGE, after=after, limit=limit)]

    async def one(self, name: str) -> Sensor:
        """Return the sensor of a name. Raises NotFound."""
        rows = await self._rows(ONE, {"name": name, "limit": 1})
        if not rows:
            raise NotFound(f"No sensor is called {name!r}.")
        return _sensor(rows[0])

    async def change(self, name: str, change: SensorChange) -> tuple[Sensor, bool]:
        """Change a sensor, or create it. Return what it has become, and whether it is new.

        Raises:
            InvalidSensor: a limit is of an unknown metric, or a lower limit would be above the upper.
        """
        async with (
            self._database.read_connection(timeout_s=TIMEOUT_S) as connection,
            confirmed(connection),
            connection.transaction(),
        ):
            # Looked up first: INSERT uses up an identity value for a known name too. And looked up again, because
            # another may have created it meanwhile.
            for statement in (LOCK, CREATE, LOCK):
                row = await (await connection.execute(statement, [name])).fetchone()
                if row is not None:
                    break
            else:  # and deleted it
                raise NotFound(f"No sensor is called {name!r}.")
            sensor_id, _ = row
            is_new = statement == CREATE
            columns = change.model_dump(exclude={"limits"}, exclude_unset=True)
            if columns:
                changes = sql.SQL(", ").join(
                    sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder(column)) for column in columns
                )
                await connection.execute(UPDATE.format(changes=changes), {**columns, "id": sensor_id})
            if "limits" in change.model_fields_set:
                await _change_limits(connection, sensor_id, change)
            # Before COMMIT, so that nothing is stored that can't be read back.
            (changed,) = await _read(connection, ONE, {"name": name, "limit": 1})
        if "limits" in change.model_fields_set:
            with suppress(DatabaseUnavailable):  # the change is stored, and loaded again soon
                await self._on_new_limits()
        return _sensor(changed), is_new

    async def _page(self, query: str, *, after: str, limit: int, **arguments: object) -> list[dict[str, Any]]:
        """Return the next rows by name, found stretch by stretch, each by statements of their own."""
        found: list[dict[str, Any]] = []
        stretch = limit
        while len(found) < limit:
            async with self._database.read_connection(timeout_s=TIMEOUT_S) as connection:
                row = await (await connection.execute(UNTIL, [after, stretch])).fetchone()
            if row is None or row[0] is None:
                break
            (until,) = row
            left = limit - len(found)
            found += await self._rows(query, {**arguments, "after": after, "until": until, "limit": left})
            after, stretch = until, min(2 * stretch, LONGEST_STRETCH)
        return found

    async def _rows(self, query: str, arguments: Mapping[str, object]) -> list[dict[str, Any]]:
        async with self._database.read_connection(timeout_s=TIMEOUT_S) as connection:
            return await _read(connection, query, arguments)


async def _read(connection: Connection, query: str, arguments: Mapping[str, object]) -> list[dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, arguments)
        return await cursor.fetchall()


async def _change_limits(connection: Connection, sensor_id: int, change: SensorChange) -> None:
    limits: dict[str, Limits] = {}
    if change.limits is not None:
        known = [name for (name,) in await (await connection.execute(KNOWN_METRICS)).fetchall()]
        if unknown := [metric for metric in change.limits if metric not in known]:
            raise InvalidSensor(f"limits: unknown metric {unknown[0]!r}. Known metrics: {', '.join(known)}.")
        for metric, lower, upper in await (await connection.execute(LIMITS, [sensor_id])).fetchall():
            limits[metric] = Limits(lower=lower, upper=upper)
        for metric, changed in change.limits.items():
            before = limits.pop(metric, Limits(lower=None, upper=None))
            if changed is not None:
                limits[metric] = Limits(**before.model_dump() | changed)
    await connection.execute(DELETE_LIMITS, [sensor_id])
    for metric, limit in limits.items():
        lower, upper = limit.lower, limit.upper
        if lower is not None and upper is not None and lower > upper:
            raise InvalidSensor(f"limits: the lower limit of {metric}, {lower:g}, is above the upper limit, {upper:g}.")
        if lower is not None or upper is not None:
            await connection.execute(INSERT_LIMITS, [sensor_id, metric, lower, upper])


def _sensor(row: Mapping[str, Any]) -> Sensor:
    return Sensor(
        sensor_id=row["name"],
        online=row["is_online"],
        latest=None if row["last_seen_at"] is None else _latest(row),
        **{name: row[name] for name in Sensor.model_fields if name not in {"sensor_id", "online", "latest"}},
    )


def _latest(row: Mapping[str, Any]) -> LatestReading:
    return LatestReading(sensor_id=row["name"], time=row["last_seen_at"], **{metric: row[metric] for metric in METRICS})
