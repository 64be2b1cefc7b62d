"""Sends readings to every contestant in the same way and takes the time. An unexpected answer ends the run.

This process sends bulk requests: they are made beforehand, and each is sent once, over connections that are open before
the clock starts. wrk sends single readings, because at tens of thousands of requests a second a sender in Python
would take the processor from the servers that it measures. wrk sends each reading once, too.
"""

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

TIMEOUT_S = 60
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1_000.0}

Send = Callable[[bytes], None]
"""Sends one portion and returns once it has been answered as expected."""


class WrongAnswer(Exception):
    """A contestant did not store what it was sent, so its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """The address and the headers with which an HTTP server takes readings."""

    port: int
    path: str
    headers: dict[str, str]
    expected_status: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The times of one sender."""

    requests: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    sender_cpu_s: float
    """Processor time of this process; wrk's is not known."""


def send_once_each(
    portions: Sequence[bytes], connect: Callable[[], AbstractContextManager[Send]], *, connections: int, warm_up: int
) -> Sent:
    """Send each portion once, over whichever connection is free, the first ``warm_up`` of them off the clock."""
    latencies_s: list[float] = []
    failures: list[BaseException] = []
    times: list[tuple[float, float]] = []
    heating, measured = iter(portions[:warm_up]), iter(portions[warm_up:])

    def note_time() -> None:
        times.append((time.perf_counter(), time.process_time()))

    start = threading.Barrier(connections, action=note_time)
    end = threading.Barrier(connections, action=note_time)

    def work() -> None:
        try:
            with connect() as send:
                for portion in heating:
                    send(portion)
                start.wait(TIMEOUT_S)
                for portion in measured:
                    sent = time.perf_counter()
                    send(portion)
                    latencies_s.append(time.perf_counter() - sent)
                end.wait(TIMEOUT_S)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            failures.append(error)
            start.abort()
            end.abort()

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise WrongAnswer(f"{type(failures[0]).__name__}: {failures[0]}") from failures[0]
    (started, cpu_before), (ended, cpu_after) = times
    latencies_s.sort()
    return Sent(
        requests=len(latencies_s),
        elapsed_s=ended - started,
        p50_ms=1_000 * latencies_s[len(latencies_s) // 2],
        p99_ms=1_000 * latencies_s[int(len(latencies_s) * 0.99)],
        sender_cpu_s=cpu_after - cpu_before,
    )


def http_request(target: Target, body: bytes) -> bytes:
    """Return the request's bytes."""
    lines = [f"POST {target.path} HTTP/1.1", f"Host: 127.0.0.1:{target.port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in target.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpConnection:
    """A keep-alive connection that sends prepared requests, and reads no more of the answers than it must."""

    def __init__(self, target: Target) -> None:
        self._expected = target.expected_status
        self._socket = socket.create_connection(("127.0.0.1", target.port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Send:
        return self._send

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _send(self, request: bytes) -> None:
        self._socket.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._received()
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length is not None and len(body) < int(length[1]):
            body += self._received()
        status = int(head.split(b" ", 2)[1])
        if status != self._expected:
            raise WrongAnswer(f"{status} instead of {self._expected}: {body[:500].decode(errors='replace')}")

    def _received(self) -> bytes:
        chunk = self._socket.recv(65_536)
        if not chunk:
            raise WrongAnswer("the server hung up")
        return chunk


class CopyConnection:
    """A connection to PostgreSQL that commits each portion by a COPY of its own."""

    def __init__(self, url: str, copy: str, settings: dict[str, str]) -> None:
        self._copy = copy.encode()
        self._connection = psycopg.connect(url, autocommit=True)
        for name, value in settings.items():
            self._connection.execute("SELECT set_config(%s, %s, false)", [name, value])

    def __enter__(self) -> Send:
        return self._send

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _send(self, payload: bytes) -> None:
        with self._connection.cursor() as cursor, cursor.copy(self._copy) as copy:
            copy.write(payload)


SCRIPT = """
wrk.method = "POST"
{headers}
local requests = {{}}
local number = 0
function init()
  for line in io.lines("{bodies}") do
    requests[#requests + 1] = wrk.format(nil, nil, nil, line)
  end
end
function request()
  number = number + 1
  return requests[number] or error("there are too few readings for so fast a server")
end
"""
"""The script of wrk. It keeps no answers and parses only their status, as wrk does in C."""


def send_singly(target: Target, readings: Path, *, connections: int, seconds: int) -> Sent:
    """Send the lines of a file, one a request, each once, for a number of seconds.

    wrk hangs up at the end of its time: the last request of each connection may be stored and not counted.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="benchmark-")))
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in target.headers.items())
        script = folder / "post.lua"
        script.write_text(SCRIPT.format(headers=headers, bodies=readings))
        url = f"http://127.0.0.1:{target.port}{target.path}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(script), url]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    if result.returncode or "Non-2xx" in output or "Socket errors" in output:
        raise WrongAnswer(f"not every request was answered well:\n{output}")
    percentiles = {
        name: float(value) * UNITS_MS[unit] for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", output)
    }
    (requests,) = re.findall(r"(\d+) requests in", output)
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", output)
    return Sent(int(requests), int(requests) / float(rate), percentiles["50"], percentiles["99"], 0.0)
