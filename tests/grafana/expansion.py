"""Expands a query as Grafana does before PostgreSQL gets it, so that dashboards can be tested without a Grafana.

Follows grafana/grafana, whose parts do it in this order: the browser puts in variables (templateSrv, and
``interpolateVariable`` of the PostgreSQL datasource) and chooses the interval (``calculateInterval`` of rangeutil.ts);
the server puts in the interval where the browser did not (``Interpolate`` of sqleng/sql_engine.go), then strips
comments and evaluates macros (macros.go). Alert rules never meet a browser, so that they have no variables.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

Value = str | list[str]
"""The value of a variable. A variable with several values has a list, even for one value."""

MACRO = re.compile(r"\$([_a-zA-Z0-9]+)\(([^\)]*)\)")
VARIABLE = re.compile(
    r"\$(?P<bare>\w+)|\[\[(?P<old>\w+?)(?::(?P<old_format>\w+))?\]\]|\$\{(?P<braced>\w+)(?::(?P<format>[^}]+))?\}"
)
QUOTED_OR_COMMENT = re.compile(
    r"""(?P<kept>'(?:[^']|'')*(?:'|$)|"(?:[^"]|"")*(?:"|$)|(?P<dollars>\$(?:[A-Za-z_]\w*)?\$).*?(?:(?P=dollars)|$))"""
    r"|/\*.*?(?:\*/|$)|--[^\n]*",
    re.DOTALL,
)

ROUNDED_MS = (
    (10, 1),
    (15, 10),
    (35, 20),
    (75, 50),
    (150, 100),
    (350, 200),
    (750, 500),
    (1_500, 1_000),
    (3_500, 2_000),
    (7_500, 5_000),
    (12_500, 10_000),
    (17_500, 15_000),
    (25_000, 20_000),
    (45_000, 30_000),
    (90_000, 60_000),
    (210_000, 120_000),
    (450_000, 300_000),
    (750_000, 600_000),
    (1_050_000, 900_000),
    (1_500_000, 1_200_000),
    (2_700_000, 1_800_000),
    (5_400_000, 3_600_000),
    (9_000_000, 7_200_000),
    (16_200_000, 10_800_000),
    (32_400_000, 21_600_000),
    (86_400_000, 43_200_000),
    (604_800_000, 86_400_000),
    (1_814_400_000, 604_800_000),
    (3_628_800_000, 2_592_000_000),
)
"""An interval below the first number becomes the second."""
YEAR_MS = 31_536_000_000

DEFAULT_MINIMUM = "1m"
"""The minimum interval of an SQL datasource that has no ``timeInterval`` of its own."""
UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

MACROS = {
    "__time": '{column} AS "time"',
    "__timeEpoch": 'extract(epoch from {column}) as "time"',
    "__timeFilter": "{column} BETWEEN '{start}' AND '{end}'",
    "__timeFrom": "'{start}'",
    "__timeTo": "'{end}'",
    "__timeGroup": "time_bucket('{width_s:.3f}s',{column})",
    "__timeGroupAlias": "time_bucket('{width_s:.3f}s',{column}) AS \"time\"",
    "__unixEpochFilter": "{column} >= {start_s} AND {column} <= {end_s}",
    "__unixEpochNanoFilter": "{column} >= {start_ns} AND {column} <= {end_ns}",
    "__unixEpochNanoFrom": "{start_ns}",
    "__unixEpochNanoTo": "{end_ns}",
    "__unixEpochGroup": "floor(({column})/{width_s:.15g})*{width_s:.15g}",
    "__unixEpochGroupAlias": 'floor(({column})/{width_s:.15g})*{width_s:.15g} AS "time"',
}
PLAIN_MACROS = {
    "__timeGroup": "floor(extract(epoch from {column})/{width_s:.15g})*{width_s:.15g}",
    "__timeGroupAlias": 'floor(extract(epoch from {column})/{width_s:.15g})*{width_s:.15g} AS "time"',
}
"""What is otherwise where the datasource says that there is no TimescaleDB."""


class ExpansionError(ValueError):
    """Grafana would refuse the query, or send one that is not what was meant."""


@dataclass(frozen=True, slots=True)
class Request:
    """The inputs of a dashboard's query.

    Args:
        start: of the dashboard's range, aware.
        end: of the dashboard's range, aware.
        interval_ms: see `interval_ms`.
        variables: by name; None for an alert rule.
        timescaledb: the datasource's setting.
    """

    start: datetime
    end: datetime
    interval_ms: int
    variables: Mapping[str, Value] | None = field(default_factory=dict)
    timescaledb: bool = True


def interval_ms(length: timedelta, max_data_points: int, minimum: str = DEFAULT_MINIMUM) -> int:
    """Return the width of a panel's point: the range divided by its most points, rounded, at least the minimum."""
    exact = length / timedelta(milliseconds=1) / max_data_points
    rounded = next((rounded for bound, rounded in ROUNDED_MS if exact < bound), YEAR_MS)
    return max(rounded, round(seconds(minimum) * 1_000))


def seconds(duration: str) -> float:
    """Return the seconds of a duration like ``5m``, ``1h30m`` or ``2d``. Months and years are refused: they vary."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", duration)
    if not parts or "".join(map("".join, parts)) != duration:
        raise ExpansionError(f"error parsing interval {duration}")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def formatted(milliseconds: int) -> str:
    """Write an interval as whole numbers of the largest unit that fits."""
    units = {"y": YEAR_MS, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}
    unit = next((unit for unit, length in units.items() if milliseconds >= length), None)
    return f"{milliseconds // units[unit]}{unit}" if unit else f"{max(milliseconds, 1)}ms"


def expand(sql: str, request: Request) -> str:
    """Return the SQL that PostgreSQL gets.

    Raises:
        ExpansionError: an unknown macro or format, or an argument that is missing or wrong.
    """
    if request.variables is not None:
        sql = _with_variables(sql, _globals(request) | dict(request.variables))
    sql = sql.replace("$__interval_ms", str(request.interval_ms)).replace("$__interval", formatted(request.interval_ms))
    sql = sql.replace("$__unixEpochFrom()", str(_epoch_s(request.start)))
    sql = sql.replace("$__unixEpochTo()", str(_epoch_s(request.end)))
    sql = without_comments(sql)

    def evaluate(match: re.Match[str]) -> str:
        name, arguments = match[1], [argument.strip(" ") for argument in match[2].split(",")]
        if name == "__timeGroup":
            # The first occurrence of the same call decides for all of them, as it does in Grafana.
            after = sql.find(match[0]) + len(match[0])
            if sql[after : after + 1] == ",":
                name = "__timeGroupAlias"
        return _macro(name, arguments, request)

    return MACRO.sub(evaluate, sql)


def without_comments(sql: str) -> str:
    """Remove comments from SQL, but not what looks like one within quotes."""
    return QUOTED_OR_COMMENT.sub(lambda match: match["kept"] or "", sql)


def _macro(name: str, arguments: list[str], request: Request) -> str:
    template = (MACROS if request.timescaledb else MACROS | PLAIN_MACROS).get(name)
    if template is None:
        raise ExpansionError(f"unknown macro {name!r}")
    return template.format(
        column=arguments[0],
        width_s=_width_s(name, arguments) if "{width_s" in template else None,
        start=_rfc3339(request.start),
        end=_rfc3339(request.end),
        start_s=_epoch_s(request.start),
        end_s=_epoch_s(request.end),
        start_ns=_epoch_ns(request.start),
        end_ns=_epoch_ns(request.end),
    )


def _width_s(name: str, arguments: list[str]) -> float:
    if len(arguments) < 2:
        raise ExpansionError(f"macro {name} needs time column and interval and optional fill value")
    if len(arguments) == 3 and arguments[2].lower() not in {"null", "previous"}:
        try:
            float(arguments[2])
        except ValueError:
            raise ExpansionError(f"error parsing fill value {arguments[2]}") from None
    return seconds(arguments[1].strip("'"))


def _with_variables(sql: str, variables: Mapping[str, Value]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match["bare"] or match["old"] or match["braced"]
        format_ = match["old_format"] or match["format"]
        if name not in variables:
            return match[0]
        if format_ is None:
            return _interpolated(variables[name])
        if format_ not in FORMATS:
            raise ExpansionError(f"unknown format {format_!r} of variable {name!r}")
        values = variables[name]
        return FORMATS[format_](values if isinstance(values, list) else [values])

    return VARIABLE.sub(value, sql)


def _interpolated(value: Value) -> str:
    """Do as ``interpolateVariable``: quote several values, and expect quotes around a single one in the query."""
    return _sql_strings(value) if isinstance(value, list) else value.replace("'", "''")


def _sql_strings(values: list[str]) -> str:
    return ",".join("'" + value.replace("'", "''") + "'" for value in values)


FORMATS: dict[str, Callable[[list[str]], str]] = {
    "csv": ",".join,
    "raw": ",".join,
    "sqlstring": _sql_strings,
    "singlequote": lambda values: ",".join("'" + value.replace("'", "\\'") + "'" for value in values),
}


def _globals(request: Request) -> dict[str, Value]:
    length_ms = (request.end - request.start) // timedelta(milliseconds=1)
    return {
        "__interval": formatted(request.interval_ms),
        "__interval_ms": str(request.interval_ms),
        "__from": str(_epoch_ns(request.start) // 1_000_000),
        "__to": str(_epoch_ns(request.end) // 1_000_000),
        "__range": f"{length_ms // 1_000}s",
        "__range_s": str(length_ms // 1_000),
        "__range_ms": str(length_ms),
        "__timezone": "UTC",
        "__searchFilter": "%",
    }


def _epoch_ns(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000


def _epoch_s(moment: datetime) -> int:
    return _epoch_ns(moment) // 1_000_000_000


def _rfc3339(moment: datetime) -> str:
    """Write a time in UTC, with a fraction only if there is one, and without zeros at its end."""
    text = moment.astimezone(UTC).isoformat().removesuffix("+00:00")
    return (text.rstrip("0") if "." in text else text) + "Z"
