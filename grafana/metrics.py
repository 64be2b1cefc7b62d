"""The form of a metric's values: its unit's symbol and decimals, in one place for every dashboard.

An axis takes the decimals that its steps need, and a figure those of its metric. If a unit is not listed here, Grafana
chooses the decimals of a figure.
"""

from collections.abc import Mapping
from typing import NamedTuple

from grafana.panels import HIDDEN, Json, override, unit_from


class Written(NamedTuple):
    """The symbol behind a value, as Grafana writes it, and its decimals."""

    symbol: str
    decimals: int


WRITTEN = {"celsius": Written(" °C", 2), "percent": Written("%", 1), "pressurehpa": Written(" hPa", 1)}
"""By the unit in the table ``metrics``."""


def decimals(unit: str) -> str:
    """Return an expression of SQL: the decimals of a column of units, or NULL."""
    return _by_unit(unit, {name: str(written.decimals) for name, written in WRITTEN.items()}, otherwise="NULL")


def symbol(unit: str) -> str:
    """Return an expression of SQL: the symbols of a column of units, without a space before them."""
    symbols = {name: f"'{written.symbol.strip()}'" for name, written in WRITTEN.items()}
    return _by_unit(unit, symbols, otherwise=unit)


def with_symbol(value: str, unit: str) -> str:
    """Return an expression of SQL: a column of values as text, with all digits and the symbol of its unit."""
    symbols = {name: f"'{written.symbol}'" for name, written in WRITTEN.items()}
    return f"{value} || " + _by_unit(unit, symbols, otherwise=f"' ' || {unit}")


def _by_unit(unit: str, expressions: Mapping[str, str], *, otherwise: str) -> str:
    cases = " ".join(f"WHEN '{name}' THEN {expression}" for name, expression in expressions.items())
    return f"CASE {unit} {cases} ELSE {otherwise} END"


UNIT, WITH_UNIT = unit_from(
    f"SELECT unit, {decimals('unit')} AS decimals FROM metrics WHERE name = ${{metric:sqlstring}}"
)
"""A query of the chosen metric's unit and decimals, and the transformation that gives them to a panel's numbers."""
UNIT_ALONE, _ = unit_from("SELECT unit FROM metrics WHERE name = ${metric:sqlstring}")
"""A query of the unit alone, for a chart of many series: an axis, and their figures, have the decimals of its steps."""

AXIS = "NULL::double precision AS axis"
"""The first column of a chart's values. Grafana writes an axis as its first series, which is never drawn."""
OF_AXIS: Json = override("axis", decimals=None, custom__hideFrom=HIDDEN)
"""The override of that column: without decimals, those of an axis are its steps'."""
