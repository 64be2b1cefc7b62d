"""What is read back: SQL text and the rows it gives, on a connection that the caller borrowed."""

from app.ingest.batch import Reading, Source
from app.store.database import Connection

# The newest row of each sensor through the index, then the newest of those: on a table with no index on time alone
# this reads a few pages a sensor where ORDER BY time would read everything.
LATEST_READING = """
SELECT (extract(epoch FROM r.time) * 1000000)::bigint, s.name, r.temperature, r.humidity, r.pressure,
       o.key_name, o.client_ip, r.id
FROM sensors s
CROSS JOIN LATERAL (SELECT * FROM readings WHERE sensor_id = s.id ORDER BY time DESC, id DESC LIMIT 1) r
JOIN sources o ON o.id = r.source_id
ORDER BY r.time DESC, r.id DESC
LIMIT 1
"""


async def latest_reading(connection: Connection) -> tuple[Reading, int] | None:
    """The latest reading by event time, and its id; None where there is none. Raises what the driver raises."""
    row = await (await connection.execute(LATEST_READING)).fetchone()
    if row is None:
        return None
    time_us, sensor, temperature, humidity, pressure, key_name, client_ip, reading_id = row
    return Reading(time_us, sensor, temperature, humidity, pressure, Source(key_name, client_ip)), reading_id
