"""The settings, each with its unit and default. Read once from the environment and ``.env``, then frozen.

The parts of the server never see this class: ``main`` hands each the plain values that it needs. README's table of
settings and the fields here are held equal by a test.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import ConfigurationError

MIN_KEY_LENGTH = 16
ENV_FILE = ".env"
COMPOSE_VARIABLES = frozenset({"POSTGRES_PASSWORD", "GRAFANA_ADMIN_PASSWORD", "API_BIND"})
"""In the same file for docker-compose.yml's other services."""
SLIP_RATIO = 0.85
"""By difflib: a letter too many or too few, two exchanged; not another word."""
PLACEHOLDER_KEYS = frozenset({"change-me-to-a-long-random-key", "your-api-key-goes-here"})


def _known_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not an IANA time zone. Use one like UTC or Europe/Madrid") from error
    return name


def _named_proxies(addresses: str) -> str:
    if "*" in addresses:
        raise ValueError(f"{addresses!r} lets any sender claim any address. List the addresses of the proxies")
    return addresses


PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Days = Annotated[NonNegativeFloat, Field(le=36_525)]
"""A hundred years at most: PostgreSQL has no moment a billion days ago."""


class Settings(BaseSettings):
    """The server's configuration. An environment variable of the same name, in capitals, sets each field."""

    model_config = SettingsConfigDict(env_file=ENV_FILE, env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: str | None = Field(
        None,
        description="PostgreSQL connection string. Unset: an embedded PostgreSQL starts, with its data in DATA_DIR.",
    )
    data_dir: Path = Field(Path("data"), description="Folder of the embedded PostgreSQL and of the keys made for it.")
    api_key: SecretStr | None = Field(
        None, description="Key for everything: sending readings, reading them back and listening."
    )
    api_key_ws: SecretStr | None = Field(None, description="Key for listening on the WebSocket only.")
    max_ws_connections_per_key: PositiveInt = Field(
        10, description="WebSocket connections that one key may have at a time."
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: PositiveInt = Field(1, le=64, description="Processes that share the port; one for each core at most.")
    max_connections: PositiveInt | None = Field(
        None,
        description="Connections that one process holds at most. At the limit a new one closes the oldest idle one "
        "that has shown no key. Unset: as many as the limit of open files allows.",
    )
    forwarded_allow_ips: Annotated[str, AfterValidator(_named_proxies)] = Field(
        "", description="Proxies, comma-separated, whose X-Forwarded-For is believed for client_ip; never `*`."
    )

    timezone: Annotated[str, AfterValidator(_known_timezone)] = Field(
        "UTC", description="IANA time zone of date_recorded and time_recorded."
    )
    accept_past_days: Days = Field(30, description="How far back a reading's own time may lie, days; 0 = any.")
    accept_future_minutes: NonNegativeFloat = Field(
        10, le=52_596_000, description="How far ahead a reading's own time may lie, minutes; 0 = any."
    )
    max_body_bytes: PositiveInt = Field(65_536, description="Largest body of POST /api/temperature_reading, bytes.")
    max_bulk_body_bytes: PositiveInt = Field(
        16_777_216, description="Largest body of POST /api/readings as it is sent, bytes; see the next."
    )
    max_bulk_inflated_bytes: PositiveInt = Field(
        25_165_824,
        description="Largest body of POST /api/readings once inflated, bytes. Never more than a quarter of a key's "
        "share of a worker's buffer, because a body counts four times while it is decoded.",
    )
    max_bulk_days: PositiveInt = Field(
        100,
        description="Distinct days that one request may span; readings of older days are rejected. Each day is a "
        "chunk of the table, or up to 24 of them.",
    )
    idempotency_window_hours: PositiveFloat = Field(
        24, le=876_600, description="How long an Idempotency-Key is remembered, hours."
    )

    retention_raw_days: Days = Field(
        0,
        description="How long readings are kept, days; 0 = no limit. Whole days (UTC) are deleted at a time; older "
        "readings are rejected.",
    )
    retention_1m_days: Days = Field(
        0,
        description="How long 1-minute aggregates are kept, days; 0 = no limit. Ten days are deleted at a time on "
        "TimescaleDB Community, elsewhere one.",
    )
    retention_1h_days: Days = Field(
        0,
        description="How long 1-hour aggregates are kept, days; 0 = no limit. 30 days are deleted at a time on "
        "TimescaleDB Community, elsewhere one.",
    )
    retention_1d_days: Days = Field(
        0,
        description="How long 1-day aggregates are kept, days; 0 = no limit. 90 days are deleted at a time on "
        "TimescaleDB Community, elsewhere one.",
    )
    maintenance_share: float = Field(
        0.15,
        gt=0,
        le=1,
        description="Part of a core that refreshing late readings may take; more while the database is idle.",
    )
    offline_after_s: PositiveFloat = Field(
        300,
        le=315_576_000,
        description="Silence after which a sensor counts as offline, seconds. A sensor with an expected interval: "
        "three intervals.",
    )
    reader_password: SecretStr | None = Field(
        None,
        description="Password of the read-only role, which Grafana uses. Unset: the role can't log in.",
    )
    reader_role: str = Field(
        "sensorflow_reader",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Name of the read-only role. Roles belong to the whole PostgreSQL server: give each of two "
        "installations on one server its own.",
    )

    buffer_max_rows: PositiveInt = Field(1_000_000, description="Rows held at most, queued and in flight; then 503.")
    buffer_max_bytes: PositiveInt = Field(
        134_217_728, description="Bytes held at most, queued and in flight; then 503."
    )
    buffer_key_share: float = Field(
        0.8, gt=0, le=1, description="Largest part of BUFFER_MAX_BYTES that one key may hold; then 429."
    )
    flush_max_rows: PositiveInt = Field(
        100_000, le=100_000, description="Rows in one flush at most, and so in one request."
    )
    columnstore_rows_per_sensor: int = Field(
        7,
        ge=0,
        description="Flushes with as many rows a sensor and day go straight into the columnstore; 0 = none does.",
    )
    flush_timeout_s: PositiveFloat = Field(
        30, description="Longest that one flush may take before its connection is given up, seconds."
    )
    commit_timeout_s: PositiveFloat = Field(
        4,
        description="Longest that a request waits for its commit, seconds; then 503, or 504 if it is in a flush. A "
        "request with thousands of new sensors may wait for those first, twice as long.",
    )
    drain_timeout_s: PositiveFloat = Field(
        10,
        description="Longest that a stopping server answers, and then flushes, seconds each; a hung database adds ten.",
    )

    live_mailbox_messages: PositiveInt = Field(
        10_000,
        description="Messages that may wait for a slow subscriber before they are conflated to the latest per sensor.",
    )
    live_mailbox_bytes: PositiveInt = Field(
        4_194_304, description="Bytes that may wait for a slow subscriber before they are conflated."
    )
    live_send_timeout_s: PositiveFloat = Field(
        10, description="Longest that one send to a subscriber may take, seconds; then it is disconnected."
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="`text` (coloured on a terminal) or `json`.")

    @model_validator(mode="after")
    def _what_is_finer_goes_first(self) -> "Settings":
        shortest = {"RAW": 1, "1M": 2, "1H": 7, "1D": 7}
        days = {name: getattr(self, f"retention_{name.lower()}_days") or math.inf for name in shortest}
        for name, kept in days.items():
            if kept < shortest[name]:
                raise ValueError(
                    f"RETENTION_{name}_DAYS is {kept:g}. It should be {shortest[name]} or more, or 0 (no limit), "
                    "so that the next aggregate can be computed from these rows"
                )
        if list(days.values()) != sorted(days.values()):
            names = ", ".join(f"RETENTION_{name}_DAYS" for name in days)
            values = ", ".join(f"{kept:g}" if kept < math.inf else "0" for kept in days.values())
            raise ValueError(
                f"{names} are {values}. Each should be at least the one before it, from which it is computed "
                "(0: no limit)"
            )
        return self

    @model_validator(mode="after")
    def _answers_come_before_the_end(self) -> "Settings":
        if self.commit_timeout_s >= self.drain_timeout_s:
            raise ValueError(
                f"COMMIT_TIMEOUT_S is {self.commit_timeout_s:g}. It should be less than DRAIN_TIMEOUT_S, which is "
                f"{self.drain_timeout_s:g}, so that a stopping server can answer all requests"
            )
        return self


def load_settings() -> Settings:
    """Read the environment and ``.env``.

    Raises:
        ConfigurationError: a value is unusable; the message names each.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(f"Invalid settings. {'; '.join(map(_fault, error.errors()))}.") from None


def _fault(fault: ErrorDetails) -> str:
    """Return what is wrong with a setting: its name, the reason and its value. No secret fails a validation."""
    if not fault["loc"]:  # several settings that don't fit together
        return str(fault["ctx"]["error"])
    name = str(fault["loc"][0]).upper()
    if fault["type"] == "value_error":  # our own sentence, which has the value
        return f"{name}: {fault['ctx']['error']}"
    return f"{name}: {fault['msg']}, not {fault['input']!r}"


def _is_of_another_program(name: str, setting: str) -> bool:
    """Return whether a name is that of a setting behind a prefix which is not ours, like GF_LOG_LEVEL."""
    return name.endswith(f"_{setting}") and not name.startswith("SENSORFLOW_")


def unknown_settings(environment: Iterable[str]) -> list[str]:
    """Return a sentence on each name that was probably meant for a setting: all unknown ones in ``.env``, those of the
    environment that differ from a setting's by a slip.
    """
    known = {name.upper() for name in Settings.model_fields}
    in_file = {name.upper() for name in dotenv_values(ENV_FILE, interpolate=False)} - known - COMPOSE_VARIABLES
    sentences = []
    for name in sorted(in_file | ({name.upper() for name in environment} - known - COMPOSE_VARIABLES)):
        near = get_close_matches(name.removeprefix("SENSORFLOW_"), known, n=1, cutoff=SLIP_RATIO)
        where = f"{ENV_FILE} has {name}" if name in in_file else f"{name} is set"
        if near and (name in in_file or not _is_of_another_program(name, near[0])):
            sentences.append(f"{where}, which is not a setting and has no effect. Did you mean {near[0]}?")
        elif name in in_file:
            sentences.append(f"{where}, which is not a setting and has no effect")
    return sentences


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The API keys in use. It has no repr that could show them."""

    api_key: str
    api_key_ws: str


def strong_keys(api_key: str, api_key_ws: str) -> Keys:
    """Return the two keys, if both are strong and they differ.

    Raises:
        ConfigurationError: one is missing, a placeholder or short, or they are equal; the message says which, and
            shows neither.
    """
    faults = []
    for name, key in (("API_KEY", api_key), ("API_KEY_WS", api_key_ws)):
        if not key:
            faults.append(f"{name} is missing")
        elif key in PLACEHOLDER_KEYS:
            faults.append(f"{name} still has its placeholder value")
        elif len(key) < MIN_KEY_LENGTH:
            faults.append(f"{name} has fewer than {MIN_KEY_LENGTH} characters")
    if not faults and api_key == api_key_ws:
        faults.append("API_KEY_WS equals API_KEY, although it should only allow listening")
    if faults:
        raise ConfigurationError(
            f"{'; '.join(faults)}. Generate a key with: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return Keys(api_key, api_key_ws)
