"""The server as its users start it: a process of its own, spoken to over its socket."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

REPOSITORY = Path(__file__).resolve().parents[2]
API_KEY = "test-key-for-everything-0123456789"
API_KEY_WS = "test-key-for-listening-0123456789"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 120


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of a server: ``settings``, a free port, JSON logs and, with a database, keys."""
    inherited = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "API_KEY"}}
    inherited |= {"PYTHONPATH": str(REPOSITORY), "PORT": "0", "LOG_FORMAT": "json"}
    if "DATABASE_URL" in settings:
        inherited |= {"API_KEY": API_KEY, "API_KEY_WS": API_KEY_WS}
    return inherited | settings


class Server:
    """A running ``python -m app serve``.

    Args:
        folder: where it runs; it has no ``.env``.
        open_files: how many files it may open; None: as many as this process.
        settings: its ``environment``.
    """

    def __init__(self, folder: Path, *, open_files: int | None = None, **settings: str) -> None:
        self.output: list[str] = []
        """Every line that it has written, to either stream."""
        self._listening = threading.Event()
        self._ready = threading.Event()
        limit = ["prlimit", f"--nofile={open_files}"] if open_files else []
        self.process = subprocess.Popen(
            [*limit, sys.executable, "-m", "app", "serve"],
            cwd=folder,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if "binding " in line or "listening on " in line:
                self._listening.set()
            if "listening on " in line:
                self._ready.set()
        self._listening.set()
        self._ready.set()

    def wait_until_ready(self) -> "Server":
        """Wait until the server accepts readings."""
        assert self._ready.wait(START_TIMEOUT_S)
        assert self.process.poll() is None, self.log
        return self

    @property
    def log(self) -> str:
        """Return everything that the server has written."""
        return "".join(self.output)

    @property
    def messages(self) -> list[str]:
        """Return the messages of the server's log."""
        return [orjson.loads(line)["message"] for line in self.output if line.startswith("{")]

    @property
    def workers(self) -> list[int]:
        """Return the processes of the workers, in the order in which they were started."""
        found = (re.fullmatch(r"worker \d+ is process (\d+)", message) for message in self.messages)
        return [int(match[1]) for match in found if match]

    @property
    def url(self) -> str:
        """Return ``http://host:port``, once the port is known."""
        assert self._listening.wait(START_TIMEOUT_S)
        found = re.search(r"http://[\d.]+:\d+", self.log)
        assert found, self.log
        return found[0]

    @property
    def websocket_url(self) -> str:
        """Return the URL of subscribers, without a key."""
        return self.url.replace("http", "ws", 1) + "/ws/sensor_updates"

    def stop(self, signal_: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        self.process.send_signal(signal_)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and the last of the output, and return the exit status."""
        status = self.process.wait(STOP_TIMEOUT_S)
        self._reader.join(STOP_TIMEOUT_S)
        return status


def eventually(is_so: Callable[[], bool], *, timeout_s: float = 15) -> None:
    """Wait until a condition is true, and fail if it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Server]:
    """Run a server that accepts readings, and stop it at the end if it still runs."""
    with starting(folder, **settings) as server:
        yield server.wait_until_ready()


@contextmanager
def starting(folder: Path, **settings: str) -> Iterator[Server]:
    """Start a server, whether or not it can reach its database."""
    server = Server(folder, open_files=None, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def command(folder: Path, *arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
    """Start ``python -m app`` with arguments and collect its output in one text."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_command(folder: Path, *arguments: str | Path, **settings: str) -> tuple[int, str]:
    """Exit status and output of a command that ends by itself."""
    with command(folder, *arguments, **settings) as process:
        output, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
        return process.returncode, output
