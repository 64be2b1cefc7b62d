"""Arrow arrays as keys: the same key only for the same values, and mostly for those."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from app.store.arrays import array_fingerprint

texts = st.lists(st.none() | st.text(st.sampled_from("a\0é"), max_size=3), max_size=4)


@st.composite
def slices(draw: st.DrawFn, of: list[str | None]) -> pa.StringArray:
    start = draw(st.integers(0, len(of)))
    return pa.array(of, pa.string()).slice(start, draw(st.integers(0, len(of) - start)))


@given(st.data(), texts, texts)
def test_arrays_with_one_key_have_the_same_values(
    data: st.DataObject, one: list[str | None], other: list[str | None]
) -> None:
    """Parts of the same buffers among them."""
    arrays = [data.draw(slices(each)) for each in (one, one, other)]
    for first in arrays:
        for second in arrays:
            if array_fingerprint(first) == array_fingerprint(second):
                assert first.to_pylist() == second.to_pylist()


def test_parts_of_one_array_have_keys_of_their_own() -> None:
    whole = pa.array(["a", "b", "b"])
    assert (
        len({array_fingerprint(part) for part in (whole, whole.slice(0, 1), whole.slice(1, 1), whole.slice(0, 2))}) == 4
    )


@given(st.lists(st.text(max_size=3), min_size=1), st.lists(st.integers(0, 100), max_size=20))
def test_the_names_of_rows_with_the_same_sensors_have_the_same_key(names: list[str], again: list[int]) -> None:
    """Rows with the same sensors have the same key, however often each occurs."""
    rows = names + [names[place % len(names)] for place in again]
    keys = {array_fingerprint(pa.array(each).dictionary_encode().dictionary) for each in (names, rows)}
    assert len(keys) == 1
