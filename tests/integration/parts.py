"""Parts of the server for tests that need no others."""

from app.store.database import Database
from app.store.sensors import Sensors


def sensors_of(database: Database) -> Sensors:
    """Return the registry of sensors, with no flusher that would hear of new limits."""

    async def ignore() -> None:
        pass

    return Sensors(database, on_new_limits=ignore)
