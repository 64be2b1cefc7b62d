"""Functions about a database, tested without one."""

import traceback

import pytest

from app.errors import ConfigurationError
from app.store.database import checked_url, connection_arguments


@pytest.mark.parametrize("url", ["mysql://sensorflow:hunter2@db/sensorflow", "password=hunter2 and more"])
def test_a_mistyped_connection_string_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a connection string") as refusal:
        checked_url(url)
    assert "hunter2" not in "".join(traceback.format_exception_only(refusal.value))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg", "postgres+x"])
def test_schemes(scheme: str) -> None:
    """A URL as SQLAlchemy, or a provider, writes it is taken."""
    assert (
        checked_url(f" {scheme}://u:p%2B@db:5433/d?sslmode=require ") == "postgresql://u:p%2B@db:5433/d?sslmode=require"
    )


def test_several_hosts() -> None:
    """A URL of several hosts asks for the primary, unless it says otherwise."""
    assert connection_arguments("postgresql://a,b/d", "x")["target_session_attrs"] == "primary"
    assert "target_session_attrs" not in connection_arguments("postgresql://a,b/d?target_session_attrs=any", "x")
    assert "target_session_attrs" not in connection_arguments("postgresql://a/d", "x")
