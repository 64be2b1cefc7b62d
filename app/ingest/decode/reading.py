"""One reading as a JSON object: the body of POST /api/temperature_reading.

Pure. Faults come in the form that FastAPI gives them, since clients of the older server read that. A number in quotes
is taken, as it was there; a boolean, NaN and Infinity are not. So is a byte order mark.
"""

from typing import Annotated

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import from_json

from app.errors import Fault, InvalidReading
from app.ingest.batch import Reading, Sender
from app.ingest.decode.timestamps import TimeWindow, parse_time_us
from app.ingest.decode.utf8 import BOM
from app.schema import METRICS

MAX_SENSOR_ID_LENGTH = 255
"""Characters of a sensor's name. In UTF-8 it must fit into an entry of the B-tree on names: 2,704 bytes."""
MAX_FAST_BODY_BYTES = 400
"""A longer body is parsed with all checks at once: few readings have one, and a name of 255 characters fits."""
_NUMBERS = frozenset({int, float})


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not a boolean")
    return value


def _clean_name(name: str) -> str:
    if "\0" in name:
        raise ValueError("should have no NUL character")
    if not name.strip():
        raise ValueError("should not be blank")
    return name


Measure = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
SensorId = Annotated[str, Field(min_length=1, max_length=MAX_SENSOR_ID_LENGTH), AfterValidator(_clean_name)]
EpochMicroseconds = Annotated[
    int,
    BeforeValidator(parse_time_us),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]}),
]


EXAMPLE_BODY: dict[str, JsonValue] = {
    "temperature": METRICS["temperature"].example,
    "humidity": METRICS["humidity"].example,
    "pressure": METRICS["pressure"].example,
    "sensor_id": "greenhouse-1",
}


class ReadingBody(BaseModel):
    """A reading as it is sent."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"example": EXAMPLE_BODY},
    )

    temperature: Measure = Field(description=METRICS["temperature"].unit)
    humidity: Measure = Field(description=METRICS["humidity"].unit)
    pressure: Measure = Field(description=METRICS["pressure"].unit)
    sensor_id: SensorId = Field(description=f"The sensor's name, 1 to {MAX_SENSOR_ID_LENGTH} characters.")
    time: EpochMicroseconds | None = Field(
        None,
        description="When it was measured: ISO 8601 (without an offset: UTC), or a number of seconds, ms, µs or ns "
        "since 1970, told apart by magnitude. Left out: the moment it arrives.",
    )


def _shown(value: object) -> object:
    """Return a value if JSON can show it, else None (for bytes, or an integer of a thousand digits)."""
    try:
        orjson.dumps(value)
    except TypeError:
        return None
    return value


Content = tuple[int | None, str, float, float, float]
"""Time, sensor, temperature, humidity and pressure, as ReadingBody takes them."""


def _parse_fast(body: bytes) -> Content | None:
    """Parse a body of the usual form. None where ReadingBody has to validate it.

    1.0 µs where the model takes 2.1. It takes short bodies only, with the known fields and no other, and no number in
    quotes; in a short one nothing lies deeper than either parser goes.
    """
    if len(body) > MAX_FAST_BODY_BYTES:
        return None
    try:
        sent = orjson.loads(body)
        temperature, humidity, pressure = sent["temperature"], sent["humidity"], sent["pressure"]
        sensor, time = sent["sensor_id"], sent.get("time")
        if (
            type(temperature) in _NUMBERS
            and type(humidity) in _NUMBERS
            and type(pressure) in _NUMBERS
            and type(sensor) is str
            and len(sensor) <= MAX_SENSOR_ID_LENGTH
            and len(sent) == 4 + ("time" in sent)
        ):
            time_us = None if time is None else parse_time_us(time)
            return time_us, _clean_name(sensor), float(temperature), float(humidity), float(pressure)
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _parse_validated(body: bytes) -> Content:
    """Parse and validate any body.

    Raises:
        InvalidReading: with every fault in ``details``.
    """
    try:
        sent = ReadingBody.model_validate_json(body)
    except ValidationError as error:
        raise InvalidReading(
            [
                Fault(type=fault["type"], loc=("body", *fault["loc"]), msg=fault["msg"], input=_shown(fault["input"]))
                for fault in error.errors(include_url=False, include_context=False)
            ]
        ) from error
    return sent.time, sent.sensor_id, sent.temperature, sent.humidity, sent.pressure


def decode_reading(body: bytes, *, source: Sender, window: TimeWindow, now_us: int) -> Reading:
    """Decode the reading in a JSON body. ``now_us``, microseconds since 1970 UTC, is its time where it brings none.

    Raises:
        InvalidReading: with every fault in ``details``.
    """
    time_us, sensor, temperature, humidity, pressure = _parse_fast(body) or _parse_validated(body.removeprefix(BOM))
    if time_us is None:
        time_us = now_us
    elif fault := window.fault(time_us, now_us=now_us):
        sent = _shown(from_json(body.removeprefix(BOM))["time"])
        raise InvalidReading([Fault(type="time_outside_window", loc=("body", "time"), msg=fault, input=sent)])
    return Reading(time_us, sensor, temperature, humidity, pressure, source)
