"""Arrow arrays as keys. Pure. Gateways send the same sensors again and again: whole arrays of them are recognized."""

import pyarrow as pa


def key_of(array: pa.Array) -> bytes:
    """Bytes that only an array of this type with the same values has, though not every one of them has the same."""
    buffers = [b"" if buffer is None else buffer.to_pybytes() for buffer in array.buffers()]
    return b"".join([f"{array.offset} {len(array)} {[*map(len, buffers)]}".encode(), *buffers])
