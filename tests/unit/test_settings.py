"""Settings agree with README, name themselves when a value is refused, and never show a key."""

import re
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.errors import ConfigurationError
from app.settings import MIN_KEY_LENGTH, PLACEHOLDER_KEYS, Keys, Settings, load_settings, strong_keys, unknown_settings
from tests.support.server import run_command

README = Path(__file__).parents[2] / "README.md"
ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| (.+?) \| (.+) \|$", re.MULTILINE)
KEY, OTHER_KEY = "correct-horse-battery", "staple-correct-horse"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


def test_the_readme_names_every_setting_with_its_default_and_description() -> None:
    _, _, section = README.read_text().partition("\n## Settings\n")
    rows = ROW.findall(section.partition("\n## ")[0])
    words = {None: "unset", "": "empty"}
    assert [tuple(row) for row in rows] == [
        (name.upper(), words.get(field.default, f"`{field.default}`"), field.description)
        for name, field in Settings.model_fields.items()
    ]


def test_without_an_environment_every_default_holds() -> None:
    assert load_settings().model_dump() == {name: field.default for name, field in Settings.model_fields.items()}


def test_the_environment_goes_before_the_file_and_the_file_before_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"PORT=9000\nHOST=0.0.0.0\nAPI_KEY={KEY}\nGRAFANA_PORT=3000\n")
    monkeypatch.setenv("PORT", "9001")
    settings = load_settings()
    assert (settings.port, settings.host) == (9001, "0.0.0.0")  # noqa: S104
    assert settings.api_key == SecretStr(KEY)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("BUFFER_MAX_ROWS", "")
    assert load_settings() == Settings.model_construct()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("WORKERS", "0"),
        ("WORKERS", "65"),
        ("FORWARDED_ALLOW_IPS", "*"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1,*"),
        ("TIMEZONE", "Mars/Olympus_Mons"),
        ("TIMEZONE", "Europe"),
        ("TIMEZONE", "../../etc/passwd"),
        ("ACCEPT_PAST_DAYS", "-1"),
        ("ACCEPT_PAST_DAYS", "inf"),
        ("ACCEPT_FUTURE_MINUTES", "nan"),
        ("ACCEPT_FUTURE_MINUTES", "1e300"),
        ("ACCEPT_PAST_DAYS", "36526"),
        ("RETENTION_RAW_DAYS", "1e9"),
        ("RETENTION_1D_DAYS", "1e9"),
        ("IDEMPOTENCY_WINDOW_HOURS", "1e12"),
        ("OFFLINE_AFTER_S", "1e12"),
        ("MAX_BODY_BYTES", "64k"),
        ("BUFFER_MAX_ROWS", "0"),
        ("BUFFER_MAX_BYTES", "1.5"),
        ("FLUSH_MAX_ROWS", "100001"),
        ("FLUSH_TIMEOUT_S", "0"),
        ("COMMIT_TIMEOUT_S", "nan"),
        ("DRAIN_TIMEOUT_S", "inf"),
        ("LIVE_MAILBOX_MESSAGES", "-5"),
        ("MAX_WS_CONNECTIONS_PER_KEY", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_under_its_variables_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=rf"\b{name}: \S"):
        load_settings()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"PORT": "eighty", "LOG_LEVEL": "LOUD"},
            r"^Invalid settings\. PORT: .*, not 'eighty'; LOG_LEVEL: .*, not 'LOUD'\.$",
        ),
        (
            {"COMMIT_TIMEOUT_S": "10", "DRAIN_TIMEOUT_S": "9"},
            r"COMMIT_TIMEOUT_S is 10\. It should be less than DRAIN_TIMEOUT_S, which is (9|10)",
        ),
    ],
)
def test_all_that_is_wrong_is_said_at_once_and_no_secret_with_it(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setenv("API_KEY_WS", OTHER_KEY)
    monkeypatch.setenv("DATABASE_URL", "postgresql://sensorflow:hunter2@db/sensorflow")
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said) as refusal:
        load_settings()
    printed = "".join(traceback.format_exception(refusal.value))
    assert not [secret for secret in (KEY, OTHER_KEY, "hunter2") if secret in printed]


@pytest.mark.parametrize("name", ["port", "api_key", "database_url"])
def test_settings_are_frozen(name: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(load_settings(), name, None)


@pytest.mark.parametrize(
    ("api_key", "api_key_ws", "faults"),
    [
        ("", KEY, ["API_KEY is missing"]),
        (KEY, "", ["API_KEY_WS is missing"]),
        ("", "", ["API_KEY is missing", "API_KEY_WS is missing"]),
        (KEY[: MIN_KEY_LENGTH - 1], KEY, ["API_KEY has fewer than 16 characters"]),
        (KEY, "hunter2", ["API_KEY_WS has fewer than 16 characters"]),
        *(
            (KEY, placeholder, ["API_KEY_WS still has its placeholder value"])
            for placeholder in sorted(PLACEHOLDER_KEYS)
        ),
        (min(PLACEHOLDER_KEYS), "x", ["API_KEY still has its placeholder", "API_KEY_WS has fewer"]),
        (KEY, KEY, ["API_KEY_WS equals API_KEY"]),
    ],
)
def test_weak_keys_are_refused_by_name_and_not_shown(api_key: str, api_key_ws: str, faults: list[str]) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        strong_keys(api_key, api_key_ws)
    said = str(refusal.value).partition(". Generate a key with")[0].split("; ")
    assert [sentence.startswith(fault) for sentence, fault in zip(said, faults, strict=True)] == [True] * len(faults)
    assert not [key for key in (api_key, api_key_ws) if len(key) > 1 and key in str(refusal.value)]


def test_strong_keys_are_handed_out_and_not_printed() -> None:
    shortest = KEY[:MIN_KEY_LENGTH]
    keys = strong_keys(shortest, OTHER_KEY)
    assert keys == Keys(shortest, OTHER_KEY)
    settings = load_settings().model_copy(update={"api_key": SecretStr(shortest), "api_key_ws": SecretStr(OTHER_KEY)})
    for printed in (repr(keys), str(keys), repr(settings), str(settings)):
        assert shortest not in printed
        assert OTHER_KEY not in printed


def test_a_stopping_server_must_have_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT_TIMEOUT_S", "10")
    with pytest.raises(
        ConfigurationError, match=r"COMMIT_TIMEOUT_S is 10\. It should be less than DRAIN_TIMEOUT_S, which is (9|10)"
    ):
        load_settings()


@pytest.mark.parametrize(
    ("in_file", "in_environment", "said"),
    [
        ("RETENTION_RAW_DAY=5", "", [".env has RETENTION_RAW_DAY, .* Did you mean RETENTION_RAW_DAYS?"]),
        ("GRAFANA_PORT=3000", "", [".env has GRAFANA_PORT, which is not a setting and has no effect"]),
        ("", "RETENTOIN_RAW_DAYS", ["RETENTOIN_RAW_DAYS is set, .* Did you mean RETENTION_RAW_DAYS?"]),
        ("", "SENSORFLOW_WORKERS", ["SENSORFLOW_WORKERS is set, .* Did you mean WORKERS?"]),
        ("", "flush_timeouts", ["FLUSH_TIMEOUTS is set, .* Did you mean FLUSH_TIMEOUT_S?"]),
        ("API_BIND=0.0.0.0\nPOSTGRES_PASSWORD=x\nport=1\n#PROT=1", "workers", []),
        ("", "PATH HOME HOSTNAME PGPORT PGHOST LOGNAME TZ XDG_DATA_DIRS LC_TIME TEST_DATABASE_URL GF_LOG_LEVEL", []),
    ],
)
def test_misspelt_settings(tmp_path: Path, in_file: str, in_environment: str, said: list[str]) -> None:
    """Unknown names in .env are reported, and names in the environment that look like a setting."""
    (tmp_path / ".env").write_text(in_file)
    sentences = unknown_settings(in_environment.split())
    assert len(sentences) == len(said), sentences
    assert all(re.match(expected, sentence) for expected, sentence in zip(said, sentences, strict=True)), sentences


def test_misspelt_setting_at_start(tmp_path: Path) -> None:
    """Every command logs a misspelt setting."""
    status, said = run_command(tmp_path, "migrate", DATABASE_URL="postgresql://127.0.0.1:1/d", RETENTION_RAW_DAY="5")
    assert status == 1
    assert "Did you mean RETENTION_RAW_DAYS?" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"PORT": "70000"}, "PORT: Input should be less than or equal to 65535, not '70000'"),
        ({"TIMEZONE": "Mars/Olympus"}, "TIMEZONE: 'Mars/Olympus' is not an IANA time zone"),
        ({"FORWARDED_ALLOW_IPS": "10.0.0.1,*"}, "FORWARDED_ALLOW_IPS: '10.0.0.1,*' lets any sender claim any address"),
        ({"RETENTION_1M_DAYS": "1.5"}, "RETENTION_1M_DAYS is 1.5. It should be 2 or more, or 0"),
        (
            {"RETENTION_RAW_DAYS": "30", "RETENTION_1H_DAYS": "7"},
            "are 30, 0, 7, 0. Each should be at least the one before",
        ),
    ],
)
def test_message_has_the_value(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], said: str) -> None:
    """A refused setting is named with its value, and with what is allowed."""
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        load_settings()
