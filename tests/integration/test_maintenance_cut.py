"""Maintenance that is cut off at any point leaves aggregates that are those of the readings, once it has run again."""

import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from app.store.aggregates import Aggregates
from app.store.chunks import Chunks
from app.store.columnstore import Columnstore
from app.store.maintenance import Pieces
from app.store.retention import Retention
from app.store.tiers import TIERS
from tests.support.aggregating import DAY, FOUND, HOUR, Rig, assert_right, execute, reading, rig, rows

WEEK = Retention(7, 0, 0, 0)
MONTH = Chunks(kept_days=30, accept_future_minutes=10)
MAX_STATEMENTS = 40
"""Some work has more statements with each cut, because each cut leaves more to do."""
AN_HOUR_BACK = (
    "UPDATE server_settings SET value = (value::timestamptz - interval '1 hour')::text"
    " WHERE name = 'aggregates_refreshed_until'",
)
CHANGE = "UPDATE readings SET pressure = pressure + 1 WHERE time < now() - interval '8 days' AND id % 7 = {} % 7"
AGES_S = [*range(60, 3 * HOUR, 977), *range(DAY, 3 * DAY, 5 * HOUR), *range(8 * DAY, 18 * DAY, 7 * HOUR)]


class Cut(Exception):
    """The process is killed here."""


class CutConnection:
    """A connection that is lost before, or after, one of its statements.

    Args:
        connection: the real one.
        statement: the number of the statement; 0 is the first.
        is_done: whether the statement is still carried out.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], statement: int, *, is_done: bool) -> None:
        self._connection = connection
        self._left = statement
        self._is_done = is_done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        if self._left == 0:
            if self._is_done:
                await self._connection.execute(*arguments, **options)
            self._connection.pgconn.finish()
            raise Cut
        self._left -= 1
        return await self._connection.execute(*arguments, **options)


def works(parts: Rig) -> dict[str, Pieces]:
    """Return what a maintaining process does."""
    aggregates, keeper, edition = Aggregates(parts.database), Columnstore(quiet=timedelta(0)), parts.database.edition
    assert edition is not None
    return {
        "check": aggregates.check_days,
        "refresh": aggregates.refresh,
        "late": aggregates.refresh_late,
        "changes": aggregates.refresh_changed,
        "columnstore": keeper.convert,
        "merging": lambda connection, _: MONTH.merge(connection),
        "retention": lambda connection, _: WEEK.delete_old(connection, edition),
    }


async def cut(parts: Rig, work: Pieces, statement: int, *, is_done: bool) -> bool:
    """Do some work, cut off at a statement, and return whether it was, or else had so few."""
    try:
        async with (
            await parts.database.connect("test") as connection,
            await parts.database.connect("test") as guard,
            guard.transaction(),
        ):
            async for _ in work(CutConnection(connection, statement, is_done=is_done), guard):  # type: ignore[arg-type]
                pass
    except Cut:
        return True
    return False


@pytest.mark.parametrize("name", ["check", "refresh", "late", "changes", "columnstore", "merging", "retention"])
async def test_cut_off_at_any_statement(database: str, edition: str, name: str) -> None:
    """Aggregates are right after work was cut off at each of its statements, and stay when the readings are deleted."""
    if edition != "community" and name in {"check", "changes", "columnstore", "merging"}:
        pytest.skip("not done in this edition")
    async with rig(database) as parts:
        await parts.refresh()
        expected: dict[str, Any] = {}
        for statement in range(MAX_STATEMENTS):
            now_s = time.time()
            if not expected:
                await parts.write(*(reading(now_s - age_s, statement) for age_s in AGES_S[statement % 5 :: 5]))
            if name == "refresh":
                execute(database, *AN_HOUR_BACK)
            if name == "check":
                execute(database, CHANGE.format(statement))
            if name == "merging":
                await parts.do(works(parts)["columnstore"])
            if name == "retention" and not expected:
                await parts.refresh()
                expected = {tier.name: rows(database, FOUND.format(tier.name)) for tier in TIERS}
            cuts = [await cut(parts, works(parts)[name], statement, is_done=is_done) for is_done in (False, True)]
            if not any(cuts):
                break
        assert statement > 2
        await parts.do(works(parts)[name])
        await parts.refresh()
        if expected:
            assert {tier.name: rows(database, FOUND.format(tier.name)) for tier in TIERS} == expected
            assert rows(database, "SELECT min(time) > now() - interval '9 days' FROM readings") == [(True,)]
        else:
            assert_right(database)
