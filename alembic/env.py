"""Runs migrations on the connection that ``app.store.database.migrate`` hands over, each in its own transaction.

Migrations ask ``op.get_context().opts["is_community"]()`` whether this database has TimescaleDB's columnstore and
continuous aggregates. Apart from that they differ in one thing: ``readings`` is a hypertable if the extension is there.
"""

import sqlalchemy
from alembic import context

LICENCE = "SELECT current_setting('timescaledb.license', true) FROM pg_extension WHERE extname = 'timescaledb'"
HYPERTABLE = """
SELECT 1 FROM timescaledb_information.hypertables
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""


def is_community() -> bool:
    """Return whether ``readings`` is a hypertable under TimescaleDB's Community licence."""
    licence = connection.execute(sqlalchemy.text(LICENCE)).scalar()
    return licence == "timescale" and connection.execute(sqlalchemy.text(HYPERTABLE)).scalar() is not None


connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with: python -m app migrate")
# The schema is named, because another one on the search path, such as the extension's, may hold another installation.
schema = connection.execute(sqlalchemy.text("SELECT current_schema")).scalar()
connection.rollback()
context.configure(
    connection=connection, version_table_schema=schema, transaction_per_migration=True, is_community=is_community
)
with context.begin_transaction():
    context.run_migrations()
