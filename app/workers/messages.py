"""The messages between parent and worker, and their encoding on the socket.

Pure. A frame is four bytes of length, one of kind, and a body. Receipts are sent as their columns in JSON, then their
payloads unchanged. Any other message is a JSON array of its class's name and its fields.

Both ends run the same code on the same machine, so there is no version and nothing is validated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import orjson

from app.ingest.result import CommittedReading

LENGTH_BYTES = 4
_CONTROL, _RECEIPTS = 0, 1


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker: has connected, and commits nothing before Welcome."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Parent: begin, and forward committed readings if ``forwarding``."""

    forwarding: bool


@dataclass(frozen=True, slots=True)
class Started:
    """Worker: answers connections, perhaps only with 503."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: accepts readings. Names the database's edition and its latest reading."""

    edition: str
    latest: CommittedReading | None


@dataclass(frozen=True, slots=True)
class Unusable:
    """Worker: no worker can start with this configuration. ``reason`` says what to change."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Parent: drain, and end."""


@dataclass(frozen=True, slots=True)
class Join:
    """Worker: requests a slot for a subscriber. ``slot`` is a number that this worker has not used yet."""

    slot: int
    key_name: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Worker: gives a slot back, or withdraws its request."""

    slot: int


@dataclass(frozen=True, slots=True)
class SetForwarding:
    """Parent: start or stop forwarding committed readings."""

    forwarding: bool
    number: int
    """Counts the SetForwarding messages to this worker."""


@dataclass(frozen=True, slots=True)
class ForwardingAck:
    """Worker: forwards whatever it commits from now on. ``latest`` is the latest reading before that."""

    number: int
    """The number of the SetForwarding that is acknowledged."""
    latest: CommittedReading | None


@dataclass(frozen=True, slots=True)
class Granted:
    """Parent: grants a slot; all other workers forward. ``latest`` is their latest reading from before."""

    slot: int
    latest: CommittedReading | None


@dataclass(frozen=True, slots=True)
class Denied:
    """Parent: refuses a slot, because the key has as many as it may have."""

    slot: int


@dataclass(frozen=True, slots=True)
class MessagesDropped:
    """Either: dropped receipts, because too many waited. ``latest`` is the latest of them."""

    latest: CommittedReading


@dataclass(frozen=True, slots=True)
class Scrape:
    """Worker: requests the metrics of the whole server."""

    number: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Parent: requests a worker's metrics."""

    number: int


@dataclass(frozen=True, slots=True)
class MetricFamilies:
    """Worker: its metrics, all of one moment, as ``metric_families`` encodes them."""

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

_CLASSES: dict[str, Callable[..., Control]] = {kind.__name__: kind for kind in get_args(Control)}


def encode_control(message: Control) -> bytes:
    """Encode a message as a frame."""
    fields = [getattr(message, name) for name in message.__slots__]
    return _frame(_CONTROL, orjson.dumps([type(message).__name__, *fields], default=_receipt_as_list))


def encode_receipts(receipts: Receipts) -> bytes:
    """Encode receipts, at least one, as a frame."""
    ids, times_us, sensors, payloads = zip(*receipts, strict=True)
    head = orjson.dumps([ids, times_us, sensors, list(map(len, payloads))])
    return _frame(_RECEIPTS, len(head).to_bytes(LENGTH_BYTES, "big") + head + b"".join(payloads))


def decode(body: bytes) -> Control | Receipts:
    """Decode a frame, given without its length."""
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
