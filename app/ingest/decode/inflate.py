"""A body's Content-Encoding undone, with a bound on what comes out.

Pure. What comes out is counted while it comes, so that 204 KB which would become 200 MiB cost no more than the bound.
"""

import pyarrow as pa

from app.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

ENCODINGS = ("identity", "gzip", "zstd")

_CODECS = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_CHUNK_BYTES = 1 << 20


def inflate(body: bytes, encoding: str, *, limit_bytes: int) -> bytes:
    """The body that a Content-Encoding's value, or none (an empty text), says was sent.

    Raises:
        UnsupportedEncoding: it is none of ENCODINGS, or several of them.
        MalformedBody: the body is cut off, or is not in that encoding.
        BodyTooLarge: it has more than ``limit_bytes`` when inflated.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        if len(body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        return body
    codec = _CODECS.get(encoding)
    if codec is None:
        raise UnsupportedEncoding(f"Content-Encoding should be one of {', '.join(ENCODINGS)}.")
    chunks = []
    size_bytes = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    raise BodyTooLarge(limit_bytes, inflated=True)
                chunks.append(chunk)
    except (OSError, pa.ArrowException) as error:
        raise MalformedBody(f"The body can't be inflated: it is cut off, or is not {encoding}.") from error
    if not body:
        raise MalformedBody(f"The body can't be inflated: it is empty, and so not {encoding}.")
    return b"".join(chunks)
