"""Fixtures with every edition and the same readings, stored once a session."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from shutil import copy

import pandas as pd
import psycopg
import pytest

from tests.grafana.data import COLUMNS, as_weather, recent, weather
from tests.grafana.stored import Stored
from tests.support.databases import WASM, new_database
from tests.support.server import run_command
from tests.support.wasm import insert, migrate_alone
from tests.support.weather import COMMAND, weather_file

WASM_SINCE = pd.Timestamp("2013-10-01T00:00:00Z")


@pytest.fixture(scope="session")
def stored(edition_and_admin_url: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """Fill a database of each edition with the weather and some readings until now."""
    edition, url = edition_and_admin_url
    until = datetime.now(UTC).replace(microsecond=0)
    made = recent(until)
    readings = pd.concat([weather(), made], ignore_index=True)[COLUMNS]
    with ExitStack() as stack:
        if edition == WASM:
            # It is slow without COPY, and a part of the year has all that there is to see.
            readings = readings[readings["time"] >= WASM_SINCE]
            migrate_alone(url)
        else:
            url = stack.enter_context(new_database(url))
            folder = tmp_path_factory.mktemp("files")
            copy(weather_file(), folder)
            as_weather(made).to_csv(folder / "recent.csv", index=False)
            _, output = run_command(folder, *COMMAND.split(), DATABASE_URL=url)
            assert output.count("readings stored") == 2, output
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        if edition == WASM:
            insert(connection, readings)
        yield Stored(connection, readings, until)
