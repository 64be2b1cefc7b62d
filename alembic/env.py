"""Runs migrations on the connection that ``app.store.database.migrate`` hands over, each in its own transaction.

They ask ``op.get_context().opts["is_community"]()`` whether TimescaleDB has its columnstore and continuous aggregates
here: all that they differ by, but for ``readings`` being a hypertable wherever the extension is.
"""

import sqlalchemy
from alembic import context

LICENCE = "SELECT current_setting('timescaledb.license', true) FROM pg_extension WHERE extname = 'timescaledb'"
HYPERTABLE = """
SELECT 1 FROM timescaledb_information.hypertables
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""


def is_community() -> bool:
    """Whether ``readings`` is a hypertable, under TimescaleDB's Community licence."""
    licence = connection.execute(sqlalchemy.text(LICENCE)).scalar()
    return licence == "timescale" and connection.execute(sqlalchemy.text(HYPERTABLE)).scalar() is not None


connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with: python -m app migrate")
# Named, because another schema on the search path, the extension's, may hold an installation of its own.
schema = connection.execute(sqlalchemy.text("SELECT current_schema")).scalar()
connection.rollback()
context.configure(
    connection=connection, version_table_schema=schema, transaction_per_migration=True, is_community=is_community
)
with context.begin_transaction():
    context.run_migrations()
