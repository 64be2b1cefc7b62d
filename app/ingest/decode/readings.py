"""The readings in a bulk body, whatever its format: the entrance to the decoders.

Pure, and nothing but errors of ``app.errors`` leaves it, whatever the bytes are. One bad reading never sinks its
neighbours; only a body in which no reading can be told from another is refused as a whole.
"""

from enum import Enum

from app.errors import BodyTooLarge
from app.ingest.decode.arrow import decode_arrow_stream, decode_parquet
from app.ingest.decode.columns import Decoded, Sent, Terms, check
from app.ingest.decode.csvs import decode_csv
from app.ingest.decode.jsons import decode_json, decode_ndjson


class Format(Enum):
    """What a bulk body may be, by its media type."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    CSV = "text/csv"
    ARROW_STREAM = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"


MAX_BODY_BYTES = 1 << 30
"""Arrow counts the bytes of one text in 32 bits, and a body is one to it."""

_DECODERS = {
    Format.JSON: decode_json,
    Format.NDJSON: decode_ndjson,
    Format.CSV: decode_csv,
    Format.ARROW_STREAM: decode_arrow_stream,
    Format.PARQUET: decode_parquet,
}


def decode_readings(body: bytes, format_: Format, terms: Terms) -> Decoded:
    """The good readings of a body as a batch, in their order, and the faults of the others.

    Args:
        body: what was sent, inflated.
        format_: how to read it.
        terms: what its readings are held to.

    Raises:
        MalformedBody: no reading can be told from another; the message says what to do.
        TooManyRows
        BodyTooLarge
    """
    return check(read_columns(body, format_, terms), terms)


def read_columns(body: bytes, format_: Format, terms: Terms) -> Sent:
    """Read a body's columns, which are not checked yet. Arguments and errors are those of ``decode_readings``."""
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    return _DECODERS[format_](body, terms)
