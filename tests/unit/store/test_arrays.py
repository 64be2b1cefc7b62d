"""Arrow arrays as keys: the same key only for the same values."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from app.store.arrays import key_of

texts = st.lists(st.none() | st.text(st.sampled_from("a\0é"), max_size=3), max_size=4)


@given(texts, texts, st.integers(0, 2), st.integers(0, 2))
def test_arrays_with_one_key_have_the_same_values(
    one: list[str | None], other: list[str | None], i: int, j: int
) -> None:
    arrays = [pa.array(one, pa.string()).slice(i), pa.array(other, pa.string()).slice(j)]
    if key_of(arrays[0]) == key_of(arrays[1]):
        assert arrays[0].to_pylist() == arrays[1].to_pylist()


@given(texts)
def test_an_array_that_is_made_again_has_the_same_key(values: list[str | None]) -> None:
    assert key_of(pa.array(values, pa.string())) == key_of(pa.array(values, pa.string()))
