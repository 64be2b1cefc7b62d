"""The conditions that a session must meet before its first query: settings pinned, a primary, no restore under way.

Pure: it has the questions and judges the answers; ``app.store.database`` asks them on every new connection.

A role, a database or postgresql.conf may set whatever they like. Of the settings that a session may change, those of
PINNED would make our statements mean or read something else, or end them at a time that is not ours. Left as they are:
what only costs or saves time (jit, work_mem, the planner's), what is the operator's to choose and is reported
(synchronous_commit, default_transaction_read_only, role, search_path's own schema), and what the driver reads in each
of its forms (bytea_output).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import ConfigurationError, DatabaseUnavailable

PINNED: Mapping[str, str] = {
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "session_replication_role": "origin",
    "default_transaction_isolation": "read committed",
    # The server has timeouts of its own, each with an answer.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
TRACKED = frozenset({"DateStyle", "TimeZone", "standard_conforming_strings"})
"""Those that PgBouncer keeps for each client, whichever server connection it is given. Source: PgBouncer's
``ignore_startup_parameters``; client_encoding is the fourth, and goes out with the start of a connection."""

INSPECT = """
SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('server_encoding'), current_database(),
       quote_ident(current_user), current_schema(), current_setting('search_path'),
       coalesce(current_setting('timescaledb.restoring', true), 'off'),
       coalesce(current_setting('timescaledb.disable_load', true), 'off'),
       (
           SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
           WHERE extname = 'timescaledb' AND NOT nspname = ANY(current_schemas(true))
       ),
       ARRAY(
           SELECT name FROM unnest(%s::text[], %s::text[]) AS pin (name, wanted)
           WHERE current_setting(name, true) <> wanted
       )
"""
INSPECT_ARGUMENTS = [list(PINNED), list(PINNED.values())]
PIN = "SELECT set_config(name, wanted, false) FROM unnest(%s::text[], %s::text[]) AS pin (name, wanted)"

STANDBY = "The database is a standby, which stores nothing."
RESTORING = "The database is being restored."


@dataclass(frozen=True, slots=True)
class Session:
    """The result of an inspection that found nothing to refuse."""

    is_pooled: bool
    """Whether a pooler stands in between: then a statement may run on another server connection than the one before,
    so nothing may be left in a session, neither a lock nor a setting nor a prepared statement."""
    to_pin: Mapping[str, str]
    """What PIN is to set before anything else."""

    @property
    def pin_arguments(self) -> list[list[str]]:
        """The parameters of PIN."""
        return [list(self.to_pin), list(self.to_pin.values())]


def inspected(row: Sequence[Any], *, backend_pid: int) -> Session:
    """Judge the answer to INSPECT. ``backend_pid`` is the number that the connection was told at its start.

    Raises:
        DatabaseUnavailable: this server can't be used now; another connection, or a later one, may be.
        ConfigurationError: it never can, until what the message names is changed.
    """
    pid, is_standby, encoding, database, user, schema, search_path, restoring, disabled, extension, differing = row
    if is_standby:
        raise DatabaseUnavailable("The server is a standby in recovery; connect to the primary.", public=STANDBY)
    if encoding != "UTF8":
        raise ConfigurationError(
            f"The database {database!r} has the encoding {encoding}, which can't hold every name. Make a new one: "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if schema is None:
        raise ConfigurationError(
            f"The search path {search_path!r} has no schema that {user} may use. Create one, or run: "
            f"ALTER ROLE {user} IN DATABASE … SET search_path = public"
        )
    if restoring == "on":
        raise DatabaseUnavailable(
            "timescaledb.restoring is on: readings would be stored where no query finds them. When the restore has "
            "ended, run: SELECT timescaledb_post_restore()",
            public=RESTORING,
        )
    if disabled == "on":
        raise ConfigurationError(
            f"timescaledb.disable_load is on, so TimescaleDB is off. Run: ALTER ROLE {user} RESET "
            "timescaledb.disable_load, and the same for the database"
        )
    to_pin = {name: PINNED[name] for name in differing}
    if extension is not None:
        # Where its functions are not found, neither are the tables' chunks.
        to_pin["search_path"] = f'{search_path}, "{extension}"'
    # A pooler reports a number of its own, so that requests to cancel come back to it.
    is_pooled = pid != backend_pid
    if is_pooled and (untracked := to_pin.keys() - TRACKED):
        commands = "; ".join(
            f'ALTER ROLE {user} IN DATABASE "{database}" SET {name} = {_literal(name, to_pin[name])}'
            for name in sorted(untracked)
        )
        raise ConfigurationError(
            f"{', '.join(sorted(untracked))} can't be set for a session behind a connection pooler. "
            f"Run: {commands}; then RECONNECT on the pooler's console"
        )
    return Session(is_pooled=is_pooled, to_pin=to_pin)


def _literal(name: str, value: str) -> str:
    return value if name == "search_path" else f"'{value}'"
