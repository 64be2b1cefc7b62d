"""Thrift's compact protocol, as far as Parquet's footers and page headers need it.

Pure. https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. It is stricter than pyarrow's
reader: what the two could read differently (a field that comes twice, a number too wide for its type) is refused, so
that what was checked here is what is read there. Everything takes time in proportion to the bytes.
"""

from collections.abc import Iterator

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAX_DEPTH = 16
"""Parquet's structures are at most seven deep."""
MAX_FIELD = 32_767
"""Fields of a struct: beyond it, what counts in 16 bits would begin anew, and read a field again."""

_FIXED_BYTES = {BYTE: 1, DOUBLE: 8}
_VARINTS = frozenset({I16, I32, I64})


class CompactReader:
    """Read values one after the other. ``at`` is where the next one begins.

    Raises:
        ValueError: from every method, if there is no such value there.
    """

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def byte(self) -> int:
        """Read one byte."""
        at = self.at
        if at >= self.end:
            raise ValueError("it ends too early")
        self.at = at + 1
        return self.data[at]

    def varint(self) -> int:
        """Read an unsigned number of at most 64 bits."""
        value = self.byte()
        if value < 0x80:  # most are small
            return value
        value &= 0x7F
        shift = 7
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def integer(self, *, bits: int = 64) -> int:
        """Read a signed number, in zigzag."""
        value = self.varint()
        value = (value >> 1) ^ -(value & 1)
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise ValueError(f"a number of more than {bits} bits")
        return value

    def size(self) -> int:
        """Read how many bytes or elements follow."""
        size = self.varint()
        if size > self.end - self.at:
            raise ValueError("it ends too early")
        return size

    def binary(self) -> bytes:
        """Read a string of bytes."""
        size = self.size()
        self.at += size
        return self.data[self.at - size : self.at]

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the id and type of each field of a struct. Read or skip its value before asking for the next."""
        number = 0
        while True:
            head = self.byte()
            if not head & 15:
                return
            if head >> 4:
                number += head >> 4
            elif (explicit := self.integer(bits=16)) > number:
                number = explicit
            else:
                raise ValueError("a field that comes twice, or not in order")
            if number > MAX_FIELD:
                raise ValueError("a field beyond all numbers")
            yield number, head & 15

    def elements(self, type_: int) -> int:
        """Begin a list of elements of one type. Return how many there are."""
        head = self.byte()
        if head & 15 != type_:
            raise ValueError("a list of another type")
        size = self.size() if head >> 4 == 15 else head >> 4
        if size > self.end - self.at:
            raise ValueError("it ends too early")
        return size

    def skip(self, type_: int, depth: int = MAX_DEPTH) -> None:
        """Pass over a value."""
        if not depth:
            raise ValueError("nested too deeply")
        if type_ in _VARINTS:
            self.varint()
        elif type_ == BINARY:
            self.binary()
        elif type_ in _FIXED_BYTES:
            self.at += _FIXED_BYTES[type_]
        elif type_ == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth - 1)
        elif type_ in (LIST, SET):
            self._skip_elements(depth)
        elif type_ == MAP:
            if size := self.size():
                kinds = self.byte()
                for _ in range(size):
                    self._skip_element(kinds >> 4, depth - 1)
                    self._skip_element(kinds & 15, depth - 1)
        elif type_ not in (TRUE, FALSE):
            raise ValueError("a value of no type")

    def _skip_elements(self, depth: int) -> None:
        head = self.data[self.at : self.at + 1]
        type_ = head[0] & 15 if head else 0
        for _ in range(self.elements(type_)):
            self._skip_element(type_, depth - 1)

    def _skip_element(self, type_: int, depth: int) -> None:
        """Skip an element of a list. Unlike a field, it has a boolean in a byte of its own."""
        self.skip(BYTE if type_ in (TRUE, FALSE) else type_, depth)
