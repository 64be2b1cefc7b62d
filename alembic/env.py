"""Runs migrations on the connection that ``app.store.database.migrate`` hands over, each in its own transaction."""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with: python -m app migrate")
context.configure(connection=connection, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
