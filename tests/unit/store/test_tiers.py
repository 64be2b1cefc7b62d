"""Spans of time, and how far the tiers are materialized."""

import itertools
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from app.store.tiers import EPOCH, TIERS, Span, merged, with_few_gaps


def spans_of(numbers: list[int]) -> list[Span]:
    return merged((EPOCH + timedelta(minutes=n), EPOCH + timedelta(minutes=n + 1)) for n in sorted(set(numbers)))


@given(numbers=st.lists(st.integers(0, 100), min_size=1), most=st.integers(1, 9))
def test_few_spans_cover_all_with_the_smallest_gaps(numbers: list[int], most: int) -> None:
    spans = spans_of(numbers)
    few = with_few_gaps(spans, most)
    assert len(few) == min(most, len(spans))
    assert all(any(start <= span[0] and span[1] <= end for start, end in few) for span in spans)
    left = [later[0] - earlier[1] for earlier, later in itertools.pairwise(few)]
    gaps = sorted((later[0] - earlier[1] for earlier, later in itertools.pairwise(spans)), reverse=True)
    assert sorted(left, reverse=True) == gaps[: most - 1]


@given(seconds=st.integers(0, 10**9))
def test_a_coarser_tier_is_materialized_no_further_than_the_finer_one(seconds: int) -> None:
    """A bucket of a coarser tier is made of buckets that are materialized."""
    until: list[datetime] = [tier.materialized_until(EPOCH + timedelta(seconds=seconds)) for tier in TIERS]
    assert until == sorted(until, reverse=True)
    assert all(tier.floor(end) == end for tier, end in zip(TIERS, until, strict=True))
