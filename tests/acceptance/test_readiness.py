"""/ready says why the database can't be used: in the database's words with a key, in general words without one."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.server import API_KEY, API_KEY_WS, eventually, running, starting

UNREACHABLE = "The database can't be reached, or refuses the server's connection."


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@contextmanager
def no_ssl() -> Iterator[str]:
    """Return a connection string that requires SSL of a server without it."""

    def refuse() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(8)
                    client.sendall(b"N")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, daemon=True).start()
        yield f"postgresql://u:hunter2@127.0.0.1:{listener.getsockname()[1]}/d?sslmode=require"
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def unusable(url: str, fault: str) -> Iterator[str]:
    """Return a connection string to a database that has a fault."""
    name = conninfo_to_dict(url)["dbname"]
    match fault:
        case "no database":
            yield make_conninfo(url, dbname="nonesuch")
        case "no role":
            yield make_conninfo(url, user="stranger")
        case "no SSL":
            with no_ssl() as no_ssl_url:
                yield no_ssl_url
        case "read-only":
            execute(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            yield url
        case "no permission":
            execute(url, "CREATE ROLE guest LOGIN")
            yield make_conninfo(url, user="guest")
            execute(url, "DROP ROLE guest")


@pytest.mark.parametrize(
    ("fault", "detail", "public"),
    [
        ("no database", 'database "nonesuch" does not exist', UNREACHABLE),
        ("no role", 'role "stranger" does not exist', UNREACHABLE),
        ("no SSL", "server does not support SSL", UNREACHABLE),
        ("read-only", "in a read-only transaction", "The database is read-only."),
        ("no permission", "permission denied for schema public", "The database's account lacks a permission."),
    ],
)
def test_reasons(embedded_database_url: str, tmp_path: Path, fault: str, detail: str, public: str) -> None:
    """From the start on, /ready gives the reason to each key, and the log has it once. Without a key it is general."""
    with unusable(embedded_database_url, fault) as url, starting(tmp_path, DATABASE_URL=url) as server:

        def trouble(key: str) -> str:
            answer = httpx.get(f"{server.url}/ready", headers={"X-API-Key": key} if key else {})
            assert (answer.status_code, answer.json()["ready"]) == (503, False)
            return str(answer.json()["trouble"])

        eventually(lambda: detail in trouble(API_KEY))
        assert detail in trouble(API_KEY_WS)
        assert trouble("") == trouble("wrong") == public
        assert len([message for message in server.messages if detail in message]) == 1


def test_read_only_while_idle(embedded_database_url: str, tmp_path: Path) -> None:
    """While the database is read-only the server is not ready, even if nothing comes."""
    name = conninfo_to_dict(embedded_database_url)["dbname"]
    end = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"
    )
    with running(tmp_path, DATABASE_URL=embedded_database_url) as server:
        ready = f"{server.url}/ready"
        assert httpx.get(ready).status_code == 200
        execute(
            embedded_database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on", end.format(name)
        )
        eventually(lambda: httpx.get(ready).json()["trouble"] == "The database is read-only.")
        writable = make_conninfo(embedded_database_url, options="-c default_transaction_read_only=off")
        execute(writable, f"ALTER DATABASE {name} RESET default_transaction_read_only")
        eventually(lambda: httpx.get(ready).status_code == 200)
