"""The conclusions from the inspection of a connection."""

import pytest

from app.errors import ConfigurationError, DatabaseUnavailable
from app.store.session import inspected

GOOD = {
    "pid": 7,
    "is_standby": False,
    "encoding": "UTF8",
    "database": "readings",
    "user": "sensorflow",
    "schema": "public",
    "search_path": '"$user", public',
    "restoring": "off",
    "disabled": "off",
    "extension": None,
    "differing": [],
}


def test_nothing_to_pin() -> None:
    """A server that is as it should be needs nothing."""
    session = inspected([*GOOD.values()], backend_pid=7)
    assert (session.is_pooled, session.to_pin) == (False, {})


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        ({"is_standby": True}, DatabaseUnavailable, "standby"),
        ({"restoring": "on"}, DatabaseUnavailable, r"run: SELECT timescaledb_post_restore\(\)"),
        ({"encoding": "LATIN1"}, ConfigurationError, "'readings' has the encoding LATIN1"),
        ({"schema": None}, ConfigurationError, "The search path .* has no schema"),
        ({"disabled": "on"}, ConfigurationError, "RESET timescaledb.disable_load"),
    ],
)
def test_refusals(found: dict[str, object], error: type[Exception], message: str) -> None:
    """A session that can't be used is refused with what to do."""
    with pytest.raises(error, match=message):
        inspected([*(GOOD | found).values()], backend_pid=7)


def test_pins_of_a_session() -> None:
    """Settings that differ are pinned, and the extension's schema is found behind all others."""
    found = GOOD | {"differing": ["DateStyle", "statement_timeout"], "extension": "tools"}
    assert inspected([*found.values()], backend_pid=7).to_pin == {
        "DateStyle": "ISO, MDY",
        "statement_timeout": "0",
        "search_path": '"$user", public, "tools"',
    }


def test_pins_behind_a_pooler() -> None:
    """Behind a pooler, only settings that it keeps for each client are pinned. The rest are named with commands."""
    found = [*(GOOD | {"differing": ["DateStyle"]}).values()]
    session = inspected(found, backend_pid=123)
    assert (session.is_pooled, [*session.to_pin]) == (True, ["DateStyle"])
    found = [*(GOOD | {"differing": ["DateStyle", "statement_timeout"], "extension": "tools"}).values()]
    with pytest.raises(ConfigurationError) as refusal:
        inspected(found, backend_pid=123)
    for command in (
        "ALTER ROLE sensorflow IN DATABASE \"readings\" SET statement_timeout = '0'",
        'ALTER ROLE sensorflow IN DATABASE "readings" SET search_path = "$user", public, "tools"',
    ):
        assert command in str(refusal.value)
    assert "DateStyle" not in str(refusal.value)
