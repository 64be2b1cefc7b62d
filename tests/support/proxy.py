"""A PostgreSQL connection that breaks on purpose: it can refuse, hang, or lose the answer to COMMIT."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from tempfile import TemporaryDirectory

from psycopg.conninfo import conninfo_to_dict, make_conninfo

COMMIT = b"Q\0\0\0\x0bCOMMIT\0"
CANCEL = bytes([0, 0, 0, 16, 4, 210, 22, 46])
"""How a request to cancel begins, which has a connection of its own."""
PATIENCE_S = 30.0


class Fault(Enum):
    """The fault that the proxy makes."""

    NONE = auto()
    LOSE_COMMIT = auto()
    """COMMIT never reaches the server; the connection is cut."""
    LOSE_COMMIT_ANSWER = auto()
    """COMMIT reaches the server, its answer does not come back; the connection is cut."""
    STALL_AT_COMMIT = auto()
    """COMMIT is swallowed and the connection stays open, silent."""
    ANSWER_COMMIT_WHEN_CANCELLED = auto()
    """COMMIT reaches the server, and its answer comes back once a cancel is requested."""
    REFUSE = auto()
    """No connection is let through."""


class FaultyProxy:
    """Stands between the server under test and its database.

    Attributes:
        url: the way to the database through the proxy.
        fault: what goes wrong; may be changed at any time.
        faults_left: how often a fault at COMMIT happens before the proxy behaves again.
    """

    def __init__(self, target: str, listener: socket.socket, url: str) -> None:
        self.url = url
        self.fault = Fault.NONE
        self.faults_left = 1_000_000
        self._target = target
        self._listener = listener
        self._sockets: set[socket.socket] = set()
        self._cancelled = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self) -> None:
        """Cut every connection and let no more through, until ``fault`` is changed."""
        self.fault = Fault.REFUSE
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Keep every connection and pass nothing on to the database, until ``resume``."""
        self._flows.clear()

    def resume(self) -> None:
        """Pass on what has arrived meanwhile, and everything from now on."""
        self._flows.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.fault is Fault.REFUSE:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._sockets |= {client, server}
                answers_pass, answers_wait = threading.Event(), threading.Event()
                answers_pass.set()
                for run in (self._questions, self._answers):
                    threading.Thread(target=run, args=(client, server, answers_pass, answers_wait), daemon=True).start()

    def _questions(
        self,
        client: socket.socket,
        server: socket.socket,
        answers_pass: threading.Event,
        answers_wait: threading.Event,
    ) -> None:
        with suppress(OSError):
            while data := client.recv(1_048_576):
                if data.startswith(CANCEL):
                    self._cancelled.set()
                self._flows.wait()
                if data == COMMIT and self.faults_left and self.fault not in (Fault.NONE, Fault.REFUSE):
                    self.faults_left -= 1
                    if self.fault is Fault.LOSE_COMMIT:
                        break
                    if self.fault is Fault.STALL_AT_COMMIT:
                        continue
                    if self.fault is Fault.ANSWER_COMMIT_WHEN_CANCELLED:
                        self._cancelled.clear()
                        answers_wait.set()
                    else:
                        answers_pass.clear()
                server.sendall(data)
        self._stop_accepting(client, server)

    def _answers(
        self,
        client: socket.socket,
        server: socket.socket,
        answers_pass: threading.Event,
        answers_wait: threading.Event,
    ) -> None:
        with suppress(OSError):
            while (data := server.recv(65_536)) and answers_pass.is_set():
                if answers_wait.is_set():
                    self._cancelled.wait(PATIENCE_S)
                client.sendall(data)
        self._stop_accepting(client, server)

    def _stop_accepting(self, *connections: socket.socket) -> None:
        for connection in connections:
            self._sockets.discard(connection)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextmanager
def faulty_proxy(database_url: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of a database that listens on a Unix socket."""
    target = Path(str(conninfo_to_dict(database_url)["host"])) / ".s.PGSQL.5432"
    with TemporaryDirectory(prefix="sf-proxy-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/.s.PGSQL.5432")
        listener.listen()
        proxy = FaultyProxy(str(target), listener, make_conninfo(database_url, host=folder))
        try:
            yield proxy
        finally:
            proxy.refuse()
            proxy.resume()
            listener.shutdown(socket.SHUT_RDWR)
