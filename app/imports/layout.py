"""The columns of a file and how they are written, as the options of an import say.

This module knows names and options, and reads no file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import ConfigurationError
from app.ingest.decode.columns import columns_like_time, format_names
from app.ingest.decode.timestamps import Precision
from app.schema import EXAMPLE_METRIC, METRICS

_OPTIONS = {"sensor_id": "--sensor ", "time": "--time "}

_SENSOR_LIKE = re.compile("(sensor|device|station|node|logger|probe|thing)(id|name|eui|code|no|number)?")


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The options of an import that concern a file's columns.

    Attributes:
        columns: for our columns, the names that the file has for them, where those differ.
        fahrenheit: the metrics that the file has in °F.
        precision: the unit of times that are numbers.
        sensor_name: the sensor of every reading, where the file has no column for it.
        separator: what a CSV has between its fields; None: it is detected.
        has_decimal_comma: whether a CSV's numbers have one; None: it is detected.
        missing: what a CSV has for a missing value, beside what is one in every CSV.
        skip_lines: how many lines a CSV has before its header; None: it is detected.
        time_format: how times are written, as datetime.strptime takes it, or ``excel``; None: as readings' times are.
        time_zone: where times without an offset were taken, an IANA name.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    fahrenheit: frozenset[str] = frozenset()
    precision: Precision = Precision.AUTO
    sensor_name: str | None = None
    separator: str | None = None
    has_decimal_comma: bool | None = None
    missing: frozenset[str] = frozenset()
    skip_lines: int | None = None
    time_format: str | None = None
    time_zone: str = "UTC"

    @property
    def renames(self) -> Mapping[str, str]:
        """Our names of the file's columns, where they differ. One that stands in another's place gets a third name."""
        displaced = {ours: f"{ours} of the file" for ours in self.columns}
        return displaced | {theirs: ours for ours, theirs in self.columns.items()}

    def ours(self, names: Sequence[str]) -> list[str]:
        """Return our names of a file's columns, in their order."""
        return [self.renames.get(name, name) for name in names]

    @property
    def needed(self) -> Sequence[str]:
        """The columns, by the file's names, that every reading needs a value in."""
        ours = ["time"] if self.sensor_name is not None else ["sensor_id", "time"]
        return [self.columns.get(name, name) for name in ours]

    def require_in(self, path: Path, names: Sequence[str]) -> None:
        """Raise ConfigurationError if an option names a column that a file doesn't have, or one is missing that no
        option names. The message says which option to give.
        """
        options = {theirs: _OPTIONS.get(ours, f"--column {ours}=") + theirs for ours, theirs in self.columns.items()}
        options |= {metric: f"--fahrenheit {metric}" for metric in sorted(self.fahrenheit - self.columns.keys())}
        its_columns = f"Its columns: {format_names(names)}."
        for column, option in options.items():
            if column not in names:
                raise ConfigurationError(f"{path} has no column {column!r}, which {option} names. {its_columns}")
        ours = self.ours(names)
        if self.sensor_name is not None and "sensor_id" in ours:
            raise ConfigurationError(f"{path} has a column of sensors: leave --sensor-name out. {its_columns}")
        if self.sensor_name is None and "sensor_id" not in ours:
            otherwise = "name it with --sensor COLUMN, or its only sensor with --sensor-name NAME"
            near = [name for name in names if _SENSOR_LIKE.fullmatch(re.sub(r"[\W_]", "", name).lower())]
            said = self._either("sensor_id", near, otherwise)
            raise ConfigurationError(f"{path} has no column 'sensor_id': {said}. {its_columns}")
        if "time" not in ours:
            said = self._either("time", columns_like_time(names), "name it with --time COLUMN")
            raise ConfigurationError(f"{path} has no column 'time': {said}. {its_columns}")
        if not {*METRICS} & {*ours}:
            raise ConfigurationError(
                f"{path} has none of {', '.join(METRICS)}: name at least one, like --column {EXAMPLE_METRIC}=COLUMN. "
                f"{its_columns}"
            )

    def _either(self, ours: str, near: Sequence[str], otherwise: str) -> str:
        """Return the advice on a missing column: the option for one that looks like it, if one does."""
        free = [name for name in near if name not in self.columns.values()]
        if not free:
            return otherwise
        return f"if {free[0]!r} is it, give {_OPTIONS[ours]}{_quoted(free[0])}; if not, {otherwise}"


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"'
