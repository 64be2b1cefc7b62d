"""A body's Content-Encoding undone, with a bound on what comes out.

Pure. What comes out is counted while it comes, so that 204 KB which would become 200 MiB cost no more than the bound.
"""

from collections.abc import Iterator

import pyarrow as pa

from app.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

ENCODINGS = ("identity", "gzip", "zstd")

_CODECS = {"": None, "identity": None, "gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_PART_BYTES = 1 << 20


def codec_of(encoding: str) -> str | None:
    """Return the codec for a Content-Encoding. None where the body is not compressed.

    Raises:
        UnsupportedEncoding: it is none of ENCODINGS, or several of them.
    """
    try:
        return _CODECS[encoding.strip().lower()]
    except KeyError:
        raise UnsupportedEncoding(f"Content-Encoding should be one of {', '.join(ENCODINGS)}.") from None


def inflated(body: bytes, codec: str, *, limit_bytes: int) -> Iterator[bytes]:
    """Yield the inflated body in parts of a megabyte, each when it is asked for.

    Raises:
        MalformedBody: the body is cut off, or is not of that codec.
        BodyTooLarge: it has more than ``limit_bytes`` when inflated.
    """
    if not body:
        raise MalformedBody(f"The body can't be inflated: it is empty, and so not {codec}.")
    size_bytes = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            while part := stream.read(_PART_BYTES):
                size_bytes += len(part)
                if size_bytes > limit_bytes:
                    raise BodyTooLarge(limit_bytes, inflated=True)
                yield part
    except (OSError, pa.ArrowException) as error:
        raise MalformedBody(f"The body can't be inflated: it is cut off, or is not {codec}.") from error
