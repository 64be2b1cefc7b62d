"""What can be said of a database without one."""

import traceback

import pytest

from app.errors import ConfigurationError
from app.store.database import checked_url


@pytest.mark.parametrize("url", ["postgresql+psycopg://sensorflow:hunter2@db/sensorflow", "password=hunter2 and more"])
def test_a_mistyped_connection_string_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a connection string") as refusal:
        checked_url(url)
    assert "hunter2" not in "".join(traceback.format_exception_only(refusal.value))
