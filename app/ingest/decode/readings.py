"""The readings in a bulk body, whatever its format: the entrance to the decoders.

Pure, and nothing but errors of ``app.errors`` leaves it, whatever the bytes are. One bad reading never sinks its
neighbours; only a body in which no reading can be told from another is refused as a whole.
"""

from collections.abc import Callable, Mapping
from enum import Enum

from app.errors import BodyTooLarge
from app.ingest.decode.arrow import open_arrow_stream
from app.ingest.decode.columns import Decoded, DecodeOptions, Opened, ParsedColumns, validate
from app.ingest.decode.csvs import decode_csv
from app.ingest.decode.jsons import decode_json, decode_ndjson
from app.ingest.decode.parquet import open_parquet


class Format(Enum):
    """The formats of a bulk body, by media type."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    CSV = "text/csv"
    ARROW_STREAM = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"


MAX_BODY_BYTES = 1 << 30
"""Arrow counts the bytes of one text in 32 bits, and a body is one to it."""

_DECODERS: Mapping[Format, Callable[[bytes, DecodeOptions], ParsedColumns]] = {
    Format.JSON: decode_json,
    Format.NDJSON: decode_ndjson,
    Format.CSV: decode_csv,
}
_OPENERS: Mapping[Format, Callable[[bytes, DecodeOptions], Opened]] = {
    Format.ARROW_STREAM: open_arrow_stream,
    Format.PARQUET: open_parquet,
}
COMPACT_FORMATS = frozenset(_OPENERS)
"""In these a few bytes can be many readings: 1,358 bytes of Parquet took 76 ms."""


def open_readings(body: bytes, format_: Format, options: DecodeOptions) -> Opened:
    """Look at a body before it is decoded: what it will take. For a text, in proportion to its size.

    Raises:
        MalformedBody, TooManyRows, BodyTooLarge: as ``decode_readings``.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    if format_ in COMPACT_FORMATS:
        return _OPENERS[format_](body, options)
    return Opened(0, lambda: _DECODERS[format_](body, options))


def decode_readings(body: bytes, format_: Format, options: DecodeOptions) -> Decoded:
    """Decode the good readings of a body as a batch, in their order, and the faults of the others.

    Args:
        body: what was sent, inflated.
        format_: how to read it.
        options: what its readings are held to.

    Raises:
        MalformedBody: no reading can be told from another; the message says what to do.
        TooManyRows
        BodyTooLarge
    """
    return decode_opened(open_readings(body, format_, options), options)


def decode_opened(opened: Opened, options: DecodeOptions) -> Decoded:
    """Decode a body that ``open_readings`` has looked at, by the same options."""
    return validate(opened.read(), options)
