"""What parent and worker say to each other, and how it is written on the socket between them.

Pure. A frame is four bytes of length, one of kind, and a body. Receipts go as their columns in JSON and then their
payloads as they are; everything else is a JSON array of its class's name and its fields.

Both ends run the same code on the same machine, so there is no version and nothing is validated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.ingest.receipt import CommittedReading

LENGTH_BYTES = 4
_CONTROL, _RECEIPTS = 0, 1


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker: I am here, and commit nothing until I am welcomed."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Parent: begin; forward what you commit if it is wanted."""

    wanted: bool


@dataclass(frozen=True, slots=True)
class Started:
    """Worker: I answer connections, if perhaps only to refuse."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: I take readings, and store them in this edition of the database, in which the latest is this."""

    edition: str
    latest: CommittedReading | None


@dataclass(frozen=True, slots=True)
class Unusable:
    """Worker: no worker can start like this; here is what to change."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Parent: answer those who wait, and end."""


@dataclass(frozen=True, slots=True)
class Join:
    """Worker: a subscriber wants a place; ``place`` is a number that this worker has not used yet."""

    place: int
    key_name: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Worker: the place is free, or no longer wanted."""

    place: int


@dataclass(frozen=True, slots=True)
class SetForwarding:
    """Parent: from now on, what you commit is wanted elsewhere, or no longer."""

    wanted: bool
    number: int
    """Counts this worker's interests."""


@dataclass(frozen=True, slots=True)
class ForwardingAck:
    """Worker: what I commit from now on, I forward. Until now the latest was this."""

    number: int
    """That of the interest."""
    latest: CommittedReading | None


@dataclass(frozen=True, slots=True)
class Granted:
    """Parent: the place is taken, and everybody forwards; of what they committed before, this is the latest."""

    place: int
    latest: CommittedReading | None


@dataclass(frozen=True, slots=True)
class Denied:
    """Parent: the key has all the places that it may have."""

    place: int


@dataclass(frozen=True, slots=True)
class MessagesDropped:
    """Either: receipts were left out here, since they were more than may wait; the latest of them was this."""

    latest: CommittedReading


@dataclass(frozen=True, slots=True)
class Scrape:
    """Worker: somebody wants the metrics of the whole server."""

    number: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Parent: your metrics, please."""

    number: int


@dataclass(frozen=True, slots=True)
class MetricFamilies:
    """Worker: my metrics, all of one moment, as ``families`` writes them."""

    number: int
    families: str


@dataclass(frozen=True, slots=True)
class Exposition:
    """Parent: the metrics of the whole server, in Prometheus' text format; None if a worker did not answer."""

    number: int
    text: str | None


FromWorker = (
    Hello | Started | Ready | Unusable | Join | Leave | ForwardingAck | Scrape | MetricFamilies | MessagesDropped
)
FromParent = Welcome | Drain | SetForwarding | Granted | Denied | Collect | Exposition | MessagesDropped
Control = FromWorker | FromParent
Receipts = Sequence[CommittedReading]

_CLASSES: dict[str, Callable[..., Control]] = {
    kind.__name__: kind
    for kind in (
        *(Hello, Started, Ready, Unusable, Join, Leave, ForwardingAck, Scrape, MetricFamilies, MessagesDropped),
        *(Welcome, Drain, SetForwarding, Granted, Denied, Collect, Exposition),
    )
}


def encode_control(message: Control) -> bytes:
    """The frame of a message."""
    fields = [getattr(message, name) for name in message.__slots__]
    return _frame(_CONTROL, orjson.dumps([type(message).__name__, *fields], default=_receipt_as_list))


def encode_receipts(receipts: Receipts) -> bytes:
    """The frame of receipts, at least one."""
    ids, times_us, sensors, payloads = zip(*receipts, strict=True)
    head = orjson.dumps([ids, times_us, sensors, list(map(len, payloads))])
    return _frame(_RECEIPTS, len(head).to_bytes(LENGTH_BYTES, "big") + head + b"".join(payloads))


def decode(body: bytes) -> Control | Receipts:
    """What a frame says, given without its length."""
    if body[0] == _RECEIPTS:
        return _decode_receipts(body)
    kind, *fields = orjson.loads(memoryview(body)[1:])
    # Only receipts are arrays.
    return _CLASSES[kind](*(_receipt_of(field) if isinstance(field, list) else field for field in fields))


def _decode_receipts(body: bytes) -> Receipts:
    head_at = 1 + LENGTH_BYTES
    begin = head_at + int.from_bytes(body[1:head_at], "big")
    receipts = []
    for reading_id, time_us, sensor, size in zip(*orjson.loads(memoryview(body)[head_at:begin]), strict=True):
        end = begin + size
        receipts.append(CommittedReading(reading_id, time_us, sensor, body[begin:end]))
        begin = end
    return receipts


def _frame(kind: int, body: bytes) -> bytes:
    return (1 + len(body)).to_bytes(LENGTH_BYTES, "big") + bytes([kind]) + body


def _receipt_as_list(receipt: Any) -> list[object]:
    reading_id, time_us, sensor, payload = receipt
    return [reading_id, time_us, sensor, payload.decode()]


def _receipt_of(fields: list[Any]) -> CommittedReading:
    reading_id, time_us, sensor, payload = fields
    return CommittedReading(reading_id, time_us, sensor, payload.encode())
