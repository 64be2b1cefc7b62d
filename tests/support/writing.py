"""A Writer on a real database, readings for it, and the stored rows."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg

from app.ingest.batch import Batch, Content, Reading, Sender
from app.ingest.idempotency import Records
from app.store.database import Database
from app.store.latest import LatestReadings
from app.store.sensors import Sensors
from app.store.writer import PreparedFlush, Writer
from tests.support.samples import batch_of

DASHBOARD = Sender("API_KEY", "192.0.2.7")


SCRIPT = Sender("API_KEY", "192.0.2.8")


T0_US = 1_689_172_245_000_000  # 2023-07-12T14:30:45Z


DAY_S = 86_400


FIRST_ANSWER = b"the first answer"


def reading(place: int, *, sensor: str = "a", source: Sender = DASHBOARD) -> Reading:
    return Reading(T0_US + place * 1_000_000, sensor, 20 + place / 3, -0.5, 1e-300, source)


def batch(*places: int, sensors: int = 1, source: Sender = SCRIPT, is_atomic: bool = False) -> Batch:
    rows = [reading(place, sensor=f"sensor {place % sensors}", source=source) for place in places]
    return batch_of(rows, source=source, is_atomic=is_atomic)


@asynccontextmanager
async def opened(url: str, *, timezone: str = "UTC", offline_after_s: float = 300) -> AsyncIterator[Database]:
    """Yield a prepared database, and close it at the end."""
    database = Database(url, timezone=timezone, offline_after_s=offline_after_s)
    try:
        await database.prepare()
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def writing(
    url: str,
    *,
    timezone: str = "UTC",
    flush_timeout_s: float = 10,
    lock_timeout_s: float = 5,
    columnstore_rows_per_sensor: int = 5,
) -> AsyncIterator[Writer]:
    async with opened(url, timezone=timezone) as database:
        writer = Writer(
            database,
            flush_timeout_s=flush_timeout_s,
            lock_timeout_s=lock_timeout_s,
            columnstore_rows_per_sensor=columnstore_rows_per_sensor,
            latest=LatestReadings(database),
            now_us=lambda: T0_US,
        )
        try:
            await writer.connect()
            yield writer
        finally:
            await writer.close()


async def write(writer: Writer, *contents: Content, records: Records | None = None) -> PreparedFlush:
    """Prepare and write a flush of these readings, with its records."""
    flush = await writer.prepare(contents)
    await writer.write(flush, lambda: records or {})
    return flush


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def count(url: str, table: str) -> object:
    return rows(url, f"SELECT count(*) FROM {table}")[0][0]


def stored(url: str) -> list[tuple[object, ...]]:
    """Return each row as its reading would be, with its id, by id."""
    return rows(
        url,
        "SELECT (extract(epoch FROM time) * 1000000)::bigint, s.name, temperature, humidity, pressure, key_name,"
        " client_ip, r.id FROM readings r JOIN sensors s ON s.id = sensor_id JOIN sources o ON o.id = source_id"
        " ORDER BY r.id",
    )


def as_stored(contents: Sequence[Content], first_id: int) -> list[tuple[object, ...]]:
    """Return what ``stored`` must report about these readings."""
    each = [one for c in contents for one in ([c] if isinstance(c, Reading) else c.readings(0, c.rows))]
    return [(*one[:5], *one.source, first_id + place) for place, one in enumerate(each)]


def refuse_heat(url: str) -> None:
    """Let PostgreSQL refuse readings of 25 °C and more: those of ``reading(place)`` from the 15th place on."""
    execute(url, "ALTER TABLE readings ADD CONSTRAINT heat CHECK (temperature < 25)")


async def until_somebody_waits_for_a_lock(url: str) -> None:
    """Wait until a session waits for a lock, within the test's timeout."""
    async with asyncio.timeout(10):
        while not rows(
            url, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ):
            await asyncio.sleep(0.01)


def sensors_of(database: Database) -> Sensors:
    """Return the registry of sensors, with no flusher that would hear of new limits."""

    async def ignore() -> None:
        pass

    return Sensors(database, on_new_limits=ignore)
