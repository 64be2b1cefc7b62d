"""``python -m app refresh``: recompute aggregates and latest readings, however the readings were written."""

from collections.abc import Callable
from datetime import datetime

from app.store.aggregates import Aggregates, nameless_message, nameless_sensors
from app.store.database import Database
from app.store.latest import LatestReadings
from app.store.tiers import TIERS, Span

QUERY_TIMEOUT_S = 300.0


async def refresh(
    database: Database,
    *,
    start: datetime,
    end: datetime,
    horizon_us: float,
    say: Callable[[str], None],
) -> None:
    """Refresh the days of a span that have readings, piece by piece. A server may run beside it.

    Args:
        database: is opened here, and closed.
        start: the start of the span.
        end: its end; what is younger than the aggregates reach is left to the server.
        horizon_us: the latest time that a reading may have now, microseconds since 1970 UTC.
        say: is told how far it has come.

    Raises:
        DatabaseUnavailable: the rest is not refreshed; it may be done again.
    """
    try:
        edition = await database.prepare()
        if edition.has_aggregates:

            def on_piece(piece: Span) -> None:
                say(f"{piece[0]:%Y-%m-%d %H:%M} to {piece[1]:%Y-%m-%d %H:%M}: refreshed")

            await Aggregates(database).recompute(start, end, on_piece=on_piece)
        else:
            say("aggregates: nothing to refresh, because the database's licence does not let it")
        await LatestReadings(database, horizon_us=lambda: horizon_us).recover()
        say("latest readings: updated")
        async with database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
            if ids := await nameless_sensors(connection, TIERS[-1].floor(start), TIERS[-1].ceil(end)):
                say(nameless_message(ids))
    finally:
        await database.close()
