"""The footer and the page headers of a Parquet file, read before any page of it is inflated.

Pure. pyarrow believes what a file says: 717 bytes in whose dictionary stood a value of a megabyte made it take 1.9 GB,
a page of 900 MB behind a ``total_byte_size`` of 1 4.6 GB, and 556 KB of footer with 990,000 columns 0.7 GB. So the
headers are read here first, by https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, and
what they add up to is known before pyarrow reads a page. Only flat columns are known.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import pyarrow as pa

from app.errors import MalformedBody
from app.ingest.decode.columns import MAX_SHOWN_LENGTH, require_few_columns
from app.ingest.decode.thrift import BINARY, FALSE, I32, I64, LIST, STRUCT, TRUE, CompactReader

MAX_FOOTER_BYTES = 1 << 20
"""1,000 columns, described by pandas and by Arrow, take 0.7 MB."""
MAX_CHUNKS = 20_000
"""Row groups, each times its columns: pyarrow takes a kilobyte for each."""
MAX_PAGES = 20_000
"""Bytes of all columns that are known."""
MAX_PAGE_HEADER_BYTES = 16_384
"""The least and the greatest value stand in it, which writers leave out beyond 4 KB."""
MAX_FIXED_BYTES = 32
"""The width of a decimal of 76 digits, the widest that a number has."""

MAX_DELTA_PAGE_BYTES = 4 << 20
"""Writers' pages have one megabyte. These are inflated once more, for the lengths in them."""

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_BYTE_ARRAY, _FIXED_LEN_BYTE_ARRAY = 6, 7
_OPTIONAL, _REPEATED = 1, 2
_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = range(4)
_HEADER_OF = {_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}
"""Which field of a page's header says what is in a page of its kind: no other is read."""
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_DELTAS = {6: 1, 7: 2}
"""DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY, and how many runs of lengths each begins with."""
_READ_AS_DICTIONARY = frozenset({_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY})
_RLE = 3
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


@dataclass(slots=True)
class Column:
    """A known column over all row groups."""

    index: int
    """Among the leaves of the schema."""
    is_text: bool
    """Whether its values are byte arrays, each as long as it likes."""
    is_optional: bool
    values: int = 0
    inflated_bytes: int = 0
    """Bytes of its pages, dictionaries included."""
    largest_page_bytes: int = 0
    is_dictionary_readable: bool = True
    """Whether pyarrow can read it as a dictionary."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The contents of a file."""

    rows: int
    names: Sequence[str]
    """Those of the columns at the top, nested ones included."""
    columns: dict[str, Column]


@dataclass(slots=True)
class _Element:
    """A node of the schema."""

    name: str = ""
    kind: int = -1
    width_bytes: int = 0
    repetition: int = 0
    children: int = 0


@dataclass(slots=True)
class _Chunk:
    """A column in one row group, as the footer has it."""

    codec: int = 0
    values: int = 0
    data_at: int = 0
    dictionary_at: int = 0


@dataclass(slots=True)
class _Group:
    rows: int = 0
    chunks: dict[int, _Chunk] = field(default_factory=dict)


@dataclass(slots=True)
class _Page:
    """A page's header."""

    kind: int = -1
    header_bytes: int = 0
    inflated_bytes: int = -1
    size_bytes: int = -1
    values: int = 0
    encoding: int = 0
    level_encoding: int = _RLE
    level_bytes: int = 0
    is_compressed: bool = True


def pages_of(body: bytes, known: Set[str]) -> Pages:
    """Read the footer of a Parquet file, and the page headers of those of its columns that are known.

    Raises:
        MalformedBody: it has too many columns, or a known one that is not flat.
        ValueError: it is no Parquet, or is damaged.
    """
    if len(body) < _TAIL_BYTES + len(_MAGIC) or body[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("it does not end as Parquet does")
    size = int.from_bytes(body[-_TAIL_BYTES : -len(_MAGIC)], "little")
    if size > len(body) - _TAIL_BYTES:
        raise ValueError("its footer is cut off")
    if size > MAX_FOOTER_BYTES:
        raise MalformedBody(
            f"The footer of the Parquet file has {size:,} bytes, and may have {MAX_FOOTER_BYTES:,}: "
            "leave out unknown columns, and write fewer row groups."
        )
    start = len(body) - _TAIL_BYTES - size
    pages, groups = _footer(CompactReader(body, start, start + size), known)
    headers = read_bytes = 0
    for group in groups:
        for column in pages.columns.values():
            chunk = group.chunks.get(column.index)
            if chunk is None or chunk.values != group.rows:
                raise ValueError("a column without a value for each row")
            for page, at in _pages_of_chunk(body, start, chunk):
                headers += 1
                read_bytes += page.header_bytes + page.size_bytes
                if headers > MAX_PAGES:
                    raise MalformedBody(f"The Parquet file has more than {MAX_PAGES:,} pages: write larger ones.")
                if read_bytes > len(body):  # a page that 20 chunks shared was inflated 20 times
                    raise ValueError("pages that overlap")
                _count(column, page, chunk)
                if page.kind in (_DATA_PAGE, _DATA_PAGE_V2) and page.encoding in _DELTAS:
                    _require_sound_lengths(page, body[at : at + page.size_bytes], chunk, column)
            column.values += chunk.values
    return pages


def _footer(reader: CompactReader, known: Set[str]) -> tuple[Pages, Sequence[_Group]]:
    rows, pages = 0, Pages(0, (), {})
    groups: Sequence[_Group] = ()
    leaves = 0
    for number, type_ in reader.fields():
        if (number, type_) == (2, LIST):
            names, columns, leaves = _schema(reader, known)
            pages = Pages(0, names, columns)
        elif (number, type_) == (3, I64):
            rows = _not_negative(reader.integer())
        elif (number, type_) == (4, LIST):
            if not pages.names:
                raise ValueError("a footer whose schema does not come first")
            needed = {column.index for column in pages.columns.values()}
            count = reader.elements(STRUCT)
            if count * leaves > MAX_CHUNKS:
                raise MalformedBody(
                    f"The Parquet file has {count:,} row groups of {leaves:,} columns: write fewer row groups."
                )
            groups = [_group(reader, leaves, needed) for _ in range(count)]
        else:
            reader.skip(type_)
    if rows != sum(group.rows for group in groups):
        raise ValueError("row groups that do not add up")
    return Pages(rows, pages.names, pages.columns), groups


def _schema(reader: CompactReader, known: Set[str]) -> tuple[Sequence[str], dict[str, Column], int]:
    """Return the top-level names, the known columns, and the number of leaves."""
    count = reader.elements(STRUCT)
    require_few_columns(count - 1)
    names: list[str] = []
    columns: dict[str, Column] = {}
    leaves = 0
    to_come = [_element(reader).children] if count else []
    """How many children each open group still has."""
    for _ in range(count - 1):
        while to_come and not to_come[-1]:
            to_come.pop()
        if not to_come:
            raise ValueError("a schema of another shape than it says")
        to_come[-1] -= 1
        element = _element(reader)
        if len(to_come) == 1:
            names.append(element.name)
        # pyarrow reads a name as a path: "time.x" would be a part of time.
        if names[-1].partition(".")[0] in known:
            _require_flat(element, names[-1], is_at_top=len(to_come) == 1 and names[-1] in known)
            columns[element.name] = Column(leaves, element.kind == _BYTE_ARRAY, element.repetition == _OPTIONAL)
        if element.children:
            to_come.append(element.children)
        elif element.kind < 0:  # to pyarrow it is a group, and has no place among the leaves
            raise ValueError("a column without a type")
        else:
            leaves += 1
    return names, columns, leaves


def _element(reader: CompactReader) -> _Element:
    element = _Element()
    for number, type_ in reader.fields():
        if type_ == I32 and number in (1, 2, 3, 5):
            value = _not_negative(reader.integer(bits=32))
            if number == 1:
                element.kind = value
            elif number == 2:
                element.width_bytes = value
            elif number == 3:
                element.repetition = value
            else:
                element.children = value
        elif (number, type_) == (4, BINARY):
            element.name = reader.binary().decode()
        else:
            reader.skip(type_)
    return element


def _require_flat(element: _Element, name: str, *, is_at_top: bool) -> None:
    if not is_at_top or element.children or element.repetition == _REPEATED:
        raise MalformedBody(f"The column {name[:MAX_SHOWN_LENGTH]} should be flat, one value a row, and is nested.")
    if element.kind == _FIXED_LEN_BYTE_ARRAY and element.width_bytes > MAX_FIXED_BYTES:
        raise MalformedBody(f"The column {name} should not be of binary values of {element.width_bytes:,} bytes.")


def _group(reader: CompactReader, leaves: int, needed: Set[int]) -> _Group:
    group = _Group()
    for number, type_ in reader.fields():
        if (number, type_) == (1, LIST):
            if reader.elements(STRUCT) != leaves:
                raise ValueError("a row group of other columns than the schema's")
            for index in range(leaves):
                if index in needed:
                    group.chunks[index] = _chunk(reader)
                else:
                    reader.skip(STRUCT)
        elif (number, type_) == (3, I64):
            group.rows = _not_negative(reader.integer())
        else:
            reader.skip(type_)
    return group


def _chunk(reader: CompactReader) -> _Chunk:
    chunk = _Chunk()
    for number, type_ in reader.fields():
        if (number, type_) != (3, STRUCT):
            reader.skip(type_)
            continue
        for inner, inner_type in reader.fields():
            if (inner, inner_type) == (4, I32):
                chunk.codec = reader.integer(bits=32)
            elif inner_type == I64 and inner in (5, 9, 11):
                value = _not_negative(reader.integer())
                if inner == 5:
                    chunk.values = value
                elif inner == 9:
                    chunk.data_at = value
                else:
                    chunk.dictionary_at = value
            else:
                reader.skip(inner_type)
    return chunk


def _pages_of_chunk(body: bytes, end: int, chunk: _Chunk) -> Iterator[tuple[_Page, int]]:
    """Yield the pages that pyarrow reads for a chunk, up to its last value, and where their content begins."""
    at = min(chunk.dictionary_at or chunk.data_at, chunk.data_at)
    seen = 0
    while seen < chunk.values:
        reader = CompactReader(body, at, min(at + MAX_PAGE_HEADER_BYTES, end))
        page = _page(reader)
        page.header_bytes = reader.at - at
        if reader.at + page.size_bytes > end:
            raise ValueError("a page that is cut off")
        yield page, reader.at
        at = reader.at + page.size_bytes
        if page.kind in (_DATA_PAGE, _DATA_PAGE_V2):
            seen += page.values


def _page(reader: CompactReader) -> _Page:
    page = _Page()
    for number, type_ in reader.fields():
        if type_ == I32 and number in (1, 2, 3):
            value = _not_negative(reader.integer(bits=32))
            if number == 1:
                page.kind = value
            elif number == 2:
                page.inflated_bytes = value
            else:
                page.size_bytes = value
        elif type_ == STRUCT and number == _HEADER_OF.get(page.kind):
            _page_values(reader, page, is_v2=page.kind == _DATA_PAGE_V2)
        else:
            reader.skip(type_)
    if min(page.kind, page.inflated_bytes, page.size_bytes) < 0:
        raise ValueError("a page without its sizes")
    return page


def _page_values(reader: CompactReader, page: _Page, *, is_v2: bool) -> None:
    encoding_at = 4 if is_v2 else 2
    for number, type_ in reader.fields():
        if type_ == I32 and number in (1, encoding_at, 3, 5, 6):
            value = _not_negative(reader.integer(bits=32))
            if number == 1:
                page.values = value
            elif number == encoding_at:
                page.encoding = value
            elif is_v2 and number in (5, 6):
                page.level_bytes += value
            elif number == 3 and not is_v2:
                page.level_encoding = value
        elif is_v2 and number == 7 and type_ in (TRUE, FALSE):
            page.is_compressed = type_ == TRUE
        else:
            reader.skip(type_)


def _not_negative(value: int) -> int:
    if value < 0:
        raise ValueError("a negative number of something")
    return value


def _count(column: Column, page: _Page, chunk: _Chunk) -> None:
    """Add a page to its column's sizes."""
    if page.values > chunk.values:
        raise ValueError("a page of more values than its column has")
    column.inflated_bytes += page.inflated_bytes
    column.largest_page_bytes = max(column.largest_page_bytes, page.inflated_bytes)
    if page.kind in (_DATA_PAGE, _DATA_PAGE_V2) and page.encoding not in _READ_AS_DICTIONARY:
        column.is_dictionary_readable = False


def _require_sound_lengths(page: _Page, content: bytes, chunk: _Chunk, column: Column) -> None:
    """Raise if a page in one of the DELTA encodings of text has more lengths than values."""
    if page.inflated_bytes > MAX_DELTA_PAGE_BYTES:
        raise MalformedBody(f"A page of text in a DELTA encoding may have {MAX_DELTA_PAGE_BYTES:,} bytes inflated.")
    values = _values_of(page, content, chunk.codec, is_optional=column.is_optional)
    reader = CompactReader(values, 0, len(values))
    for _ in range(_DELTAS[page.encoding]):
        _require_few_lengths(reader, page.values)


def _values_of(page: _Page, content: bytes, codec: int, *, is_optional: bool) -> bytes:
    """Return the inflated values of a flat column's data page, without the levels before them."""
    size = page.inflated_bytes - page.level_bytes
    content = content[page.level_bytes :]
    if size < 0:
        raise ValueError("a page of more levels than bytes")
    if codec and content:
        if codec not in _CODECS:
            raise ValueError("a codec that text in DELTA encoding can't be inflated with")
        try:
            inflated = pa.decompress(content, decompressed_size=size, codec=_CODECS[codec], asbytes=True)
        except (OSError, pa.ArrowException):
            inflated = None
        # pyarrow inflates a page that says it is not compressed where the file says it is by a pyarrow before 3.0.
        if page.is_compressed is (inflated is None):
            raise ValueError("a page that is compressed, and says it is not, or the other way round")
        content = content if inflated is None else inflated
    if page.kind == _DATA_PAGE_V2 or not is_optional:
        return content
    if page.level_encoding != _RLE:
        return content[(page.values + 7) // 8 :]
    return content[4 + int.from_bytes(content[:4], "little") :]


def _require_few_lengths(reader: CompactReader, values: int) -> None:
    """Pass over a run of DELTA_BINARY_PACKED numbers. Raise if it declares too many, since pyarrow allocates what it
    declares.
    """
    if reader.at == reader.end:
        return
    block, parts, count = reader.varint(), reader.varint(), reader.varint()
    reader.integer()
    if count > values or not parts or not block // parts or block > 1 << 30:
        raise ValueError("more lengths than values")
    part = block // parts
    left = count - 1
    while left > 0:
        reader.integer()
        widths = reader.data[reader.at : reader.at + parts]
        reader.at += parts
        for width in widths:
            if left > 0:
                reader.at += width * part // 8
                left -= part
        if len(widths) < parts or reader.at > reader.end:
            raise ValueError("lengths that are cut off")
