"""The share of time that background work takes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store.budget import IDLE_SHARE, LOAD_WINDOW_S, LONGEST_DEBT_S, Budget


@given(share=st.floats(0.01, 1), pieces=st.lists(st.floats(0.001, 10), min_size=5, max_size=50))
def test_a_busy_database_gives_work_its_share(share: float, pieces: list[float]) -> None:
    budget, now, spent = Budget(share), 0.0, 0.0
    for seconds in pieces:
        now = max(now, budget.free_at)
        assert budget.may_spend(now)
        now += seconds
        spent += seconds
        budget.spend(seconds, now=now, could_wait=True)
    assert spent / max(now, budget.free_at) == pytest.approx(share)


@given(others=st.lists(st.floats(0.001, 3), min_size=5, max_size=30))
def test_other_work_is_part_of_the_share(others: list[float]) -> None:
    """Work that can wait has what other work leaves of the share, as long as that leaves anything."""
    budget, now, spent = Budget(0.15), 0.0, 0.0
    for seconds in others:
        for could_wait in (False, True):
            now = max(now, budget.free_at) + seconds
            spent += seconds
            budget.spend(seconds, now=now, could_wait=could_wait)
    assert spent / max(now, budget.free_at) == pytest.approx(0.15)


def test_an_idle_database_gives_more() -> None:
    """The database is idle if the statements of others take little time."""
    budget = Budget(0.1)
    assert not budget.is_idle
    budget.note_load(50, now=0)
    budget.spend(3, now=5, could_wait=True)
    assert not budget.may_spend(8)
    budget.note_load(53.1, now=LOAD_WINDOW_S)
    assert budget.is_idle
    assert budget.may_spend(5 + 3 / IDLE_SHARE)
    budget.note_load(54, now=2 * LOAD_WINDOW_S)
    assert not budget.is_idle
    assert not budget.may_spend(2 * LOAD_WINDOW_S)


def test_load_is_of_the_last_seconds() -> None:
    budget = Budget(0.1)
    for second in range(0, 60, 2):
        budget.note_load(second if second < 30 else 30, now=second)
        assert budget.is_idle == (second >= 30 + LOAD_WINDOW_S)


def test_a_database_whose_load_is_unknown_is_not_idle() -> None:
    """A database whose load is unknown gives work its share, and no more."""
    budget = Budget(0.1)
    for second in range(0, 40, 2):
        budget.note_load(math.nan if 4 <= second < 20 else 1, now=second)
        assert budget.is_idle == (second >= 20 + LOAD_WINDOW_S)


def test_the_rest_waits_a_bounded_time_after_long_work() -> None:
    budget = Budget(0.01)
    budget.spend(3_600, now=4_000, could_wait=False)
    assert budget.free_at == 4_000 + LONGEST_DEBT_S


def test_work_that_can_not_wait_never_keeps_the_rest_from_its_turn_for_good() -> None:
    """Work that can wait has a turn at least every few minutes, however much the other work takes."""
    budget, now, turns = Budget(0.15), 0.0, 0
    while now < 3_600:
        now += 6
        budget.spend(6, now=now, could_wait=False)
        for _ in range(24):
            now += 1
            if budget.may_spend(now):
                budget.spend(1, now=now + 1, could_wait=True)
                turns += 1
    assert turns >= 3_600 / (LONGEST_DEBT_S + 60)
