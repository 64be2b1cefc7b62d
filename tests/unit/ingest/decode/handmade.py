"""Writes Parquet files field by field, such as no writer makes and a reader may still trust."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
BYTE_ARRAY, DOUBLE = 6, 5
UNCOMPRESSED, ZSTD = 0, 6

Field = tuple[int, int, bytes]


class Leaf(NamedTuple):
    """A column, and what the row group has of it."""

    name: bytes
    kind: int
    pages: bytes
    codec: int = UNCOMPRESSED


def written(leaves: Sequence[Leaf], *, rows: int, before: bytes = b"", more_chunks: int = 0, groups: int = 1) -> bytes:
    """Write a file. ``before`` is an element of the schema before the leaves', and all groups have the same pages."""
    at, chunks = 4, []
    for leaf in leaves:
        chunks.append(_chunk(leaf, rows, at))
        at += len(leaf.pages)
    elements = [element(b"schema", children=len(leaves) + bool(before)), *[before] * bool(before)]
    elements += [element(leaf.name, kind=leaf.kind) for leaf in leaves]
    behind = [fields(i64(2, 0))] * more_chunks
    group = fields((1, LIST, _list(STRUCT, [*chunks, *behind])), i64(2, 1), i64(3, rows))
    footer = fields(
        i32(1, 2), (2, LIST, _list(STRUCT, elements)), i64(3, rows * groups), (4, LIST, _list(STRUCT, [group] * groups))
    )
    pages = b"".join(leaf.pages for leaf in leaves)
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def element(name: bytes, *, kind: int | None = None, children: int | None = None) -> bytes:
    """Return a node of the schema, required."""
    own = [i32(1, kind)] if kind is not None else []
    of_group = [i32(5, children)] if children is not None else []
    return fields(*own, i32(3, 0), (4, BINARY, _text(name)), *of_group)


def page(content: bytes, *, values: int, inflated_bytes: int | None = None, more: Sequence[Field] = ()) -> bytes:
    """Return a data page of the first version with its header. ``more`` are fields after those of the header."""
    inflated = len(content) if inflated_bytes is None else inflated_bytes
    return fields(i32(1, 0), i32(2, inflated), i32(3, len(content)), (5, STRUCT, of_values(values)), *more) + content


def of_values(values: int) -> bytes:
    """Return the header of a data page of the first version, in plain encoding."""
    return fields(i32(1, values), i32(2, 0), i32(3, 3), i32(4, 3))


def i32(number: int, value: int) -> Field:
    """Return a field of 32 bits."""
    return number, I32, _unsigned(2 * value)


def i64(number: int, value: int) -> Field:
    """Return a field of 64 bits."""
    return number, I64, _unsigned(2 * value)


def fields(*of_struct: Field) -> bytes:
    """Return a struct. A field whose number is not greater than the one before wraps round at 65,536."""
    out, last = b"", 0
    for number, type_, value in of_struct:
        if number > last:
            out += bytes([type_]) + _unsigned(2 * number) if number > last + 15 else bytes([number - last << 4 | type_])
        else:
            out += bytes([1]) + _unsigned(2 * 32_767)
            steps = 65_536 + number - 32_767
            out += bytes([0xF1]) * ((steps - 1) // 15) + bytes([(steps - 1) % 15 + 1 << 4 | type_])
        out += value
        last = number
    return out + b"\0"


def _chunk(leaf: Leaf, rows: int, at: int) -> bytes:
    size = len(leaf.pages)
    return fields(
        i64(2, 0),
        (
            3,
            STRUCT,
            fields(
                i32(1, leaf.kind),
                (2, LIST, _list(I32, [b"\0"])),
                (3, LIST, _list(BINARY, [_text(leaf.name)])),
                i32(4, leaf.codec),
                *(i64(5, rows), i64(6, size), i64(7, size), i64(9, at)),
            ),
        ),
    )


def _text(text: bytes) -> bytes:
    return _unsigned(len(text)) + text


def _list(type_: int, items: Sequence[bytes]) -> bytes:
    return bytes([0xF0 | type_]) + _unsigned(len(items)) + b"".join(items)


def _unsigned(number: int) -> bytes:
    digits = b""
    while number >= 0x80:
        digits += bytes([number & 0x7F | 0x80])
        number >>= 7
    return digits + bytes([number])
