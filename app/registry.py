"""The registry of sensors as it is read and changed: what is known of each beside its readings. Pure."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from app.schema import EXAMPLE_METRIC, METRICS

Text = Annotated[str, Field(max_length=1_000, pattern="^[^\0]*$")]
Moment = Annotated[datetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
MAX_INTERVAL_S = 315_576_000
"""Ten years. PostgreSQL has no moment three intervals of a trillion seconds ago, and no list of sensors then."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""Strict, since ``false`` is no longitude of 0."""


class Limits(BaseModel):
    """Within these a metric's values should lie. Null: any."""

    lower: float | None
    upper: float | None


class _SensorAndTime(BaseModel):
    sensor_id: str
    time: Moment


_VALUES: dict[str, Any] = dict.fromkeys(METRICS, (float | None, ...))


class LatestReading(create_model("LatestReading", __base__=_SensorAndTime, **_VALUES)):  # type: ignore[misc]
    """The latest reading of a sensor by its own time."""


class Sensor(BaseModel):
    """A sensor."""

    sensor_id: str
    """Its name."""
    label: str | None
    location: str | None
    latitude: float | None
    longitude: float | None
    expected_interval_s: float | None
    limits: dict[str, Limits]
    last_seen_at: Moment | None
    online: bool | None = Field(
        description="Whether the latest reading is recent: younger than three expected intervals or, without one, than "
        "OFFLINE_AFTER_S. null: there is none."
    )
    latest: LatestReading | None


class SensorChange(BaseModel):
    """A change of a sensor, as a JSON merge patch (RFC 7396): what is left out stays, null removes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                "label": "Tomatoes",
                "expected_interval_s": 60,
                "limits": {EXAMPLE_METRIC: {"lower": 5, "upper": 35}},
            }
        },
    )

    label: Text | None = None
    location: Text | None = None
    latitude: Annotated[Number, Field(ge=-90, le=90)] | None = None
    longitude: Annotated[Number, Field(ge=-180, le=180)] | None = None
    expected_interval_s: Annotated[Number, Field(gt=0, le=MAX_INTERVAL_S)] | None = None
    limits: dict[str, dict[Literal["lower", "upper"], Number | None] | None] | None = None
