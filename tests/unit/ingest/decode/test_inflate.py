"""Content-Encoding is undone exactly and never past the bound, and damage is reported as damage."""

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding
from app.ingest.decode.inflate import codec_of, inflated

LIMIT = 1 << 20
BODY = b'{"sensor_id":"a"}\n' * 1_000


def inflate(body: bytes, encoding: str, *, limit_bytes: int) -> bytes:
    codec = codec_of(encoding)
    assert codec is not None
    return b"".join(inflated(body, codec, limit_bytes=limit_bytes))


def zstd(body: bytes) -> bytes:
    return bytes(pa.compress(body, codec="zstd", asbytes=True))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd}


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@given(body=st.binary(), parts=st.integers(1, 3))
def test_what_was_compressed_comes_back(encoding: str, body: bytes, parts: int) -> None:
    """Compressed bytes come back, also from several members in a row, as gzip and zstd allow."""
    assert inflate(parts * COMPRESSORS[encoding](body), encoding, limit_bytes=LIMIT) == parts * body


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_identity_has_no_codec(encoding: str) -> None:
    assert codec_of(encoding) is None


@pytest.mark.parametrize("encoding", ["GZIP", " gzip ", "x-gzip"])
def test_names_are_taken_as_http_writes_them(encoding: str) -> None:
    assert inflate(gzip.compress(BODY), encoding, limit_bytes=LIMIT) == BODY


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "gzip,identity", "snappy", "lz4"])
def test_other_encodings_are_named_as_unsupported(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="identity, gzip, zstd"):
        codec_of(encoding)


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_the_bound_is_on_what_comes_out_and_may_be_reached(encoding: str) -> None:
    compressed = COMPRESSORS[encoding](BODY)
    assert inflate(compressed, encoding, limit_bytes=len(BODY)) == BODY
    with pytest.raises(BodyTooLarge, match="when inflated"):
        inflate(compressed, encoding, limit_bytes=len(BODY) - 1)


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_a_bomb_stops_at_the_bound(encoding: str) -> None:
    """200 MiB of zeros in some 200 KB: what is taken for them is the bound and a few chunks more."""
    bomb = COMPRESSORS[encoding](bytes(200 << 20))
    assert len(bomb) < 250_000
    held = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        inflate(bomb, encoding, limit_bytes=LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    tracemalloc.stop()
    assert pa.total_allocated_bytes() <= held


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_a_body_that_is_cut_off_anywhere_is_refused(encoding: str) -> None:
    compressed = COMPRESSORS[encoding](BODY)
    for length in range(len(compressed)):
        with pytest.raises(MalformedBody, match=r"cut off|empty"):
            inflate(compressed[:length], encoding, limit_bytes=LIMIT)


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_what_is_not_in_its_encoding_is_refused(encoding: str) -> None:
    compressed = COMPRESSORS[encoding](BODY)
    for damaged in (BODY, compressed + b"x", b"\0" + compressed):
        with pytest.raises(MalformedBody, match=encoding):
            inflate(damaged, encoding, limit_bytes=LIMIT)


@given(body=st.binary(max_size=100), encoding=st.sampled_from(["gzip", "zstd"]))
def test_whatever_the_bytes_are_they_are_inflated_or_refused(body: bytes, encoding: str) -> None:
    for sent in (body, COMPRESSORS[encoding](body)[:10] + body, zlib.compress(body)):
        with contextlib.suppress(MalformedBody, BodyTooLarge):
            inflate(sent, encoding, limit_bytes=LIMIT)
