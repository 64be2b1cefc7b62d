"""/api/sensors and /api/latest: the registry of sensors, what each sent last, and how it is changed.

A name may have any character, slashes too. In a path, ``%2F`` is a part of the name where ``/`` could be the route's;
``app.web.names`` has the rest.
"""

from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from app.errors import InvalidSensor, NotFound
from app.ingest.decode.reading import SensorId
from app.registry import LatestReading, Sensor, SensorChange
from app.web import auth
from app.web.access import refusals, requires
from app.web.bodies import announced_bytes, parts_of
from app.web.error_responses import Problem
from app.web.names import LATEST, NAME, Name, ends_like, utf8_query

DEFAULT_LIMIT = 100
MAX_LIMIT = 1_000
MAX_CHANGE_BYTES = 65_536

SENSOR_ID = TypeAdapter[str](SensorId)
MERGE_PATCH = "application/merge-patch+json"
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
After = Annotated[str, Query(alias="cursor", pattern="^[^\0]*$", description="The next_cursor of an answer.")]
REFUSALS: dict[int | str, dict[str, object]] = {
    **refusals(auth.Scope.READ),
    503: {"model": Problem, "description": "Unavailable; try again after Retry-After seconds"},
}
UNKNOWN: dict[int | str, dict[str, object]] = {404: {"model": Problem, "description": "The sensor is unknown"}}


class Registry(Protocol):
    """Where sensors are known. Raises DatabaseUnavailable."""

    async def page(self, *, after: str, limit: int, online: bool | None) -> list[Sensor]:
        """Return the sensors whose names come after one, by name."""

    async def latest(self, *, after: str, limit: int) -> list[LatestReading]:
        """Return their latest readings, by name."""

    async def one(self, name: str) -> Sensor:
        """Return a sensor. Raises NotFound."""

    async def change(self, name: str, change: SensorChange) -> tuple[Sensor, bool]:
        """Change a sensor, or create it. Give back what it has become, and whether it is new. Raises InvalidSensor."""


class SensorsPage(BaseModel):
    """Sensors, by name."""

    sensors: list[Sensor]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page.")


class LatestPage(BaseModel):
    """Latest readings, by the name of the sensor."""

    readings: list[LatestReading]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page.")


def sensors_router(registry: Registry, *, api_keys: auth.ApiKeys) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["sensors"], responses=REFUSALS)
    reader = [requires(api_keys, auth.Scope.READ), Depends(utf8_query)]

    @router.get("/sensors", summary="List sensors and their status", dependencies=reader)
    async def get_sensors(
        online: Annotated[
            bool | None, Query(description="true: only sensors that are online; false: only those that are not.")
        ] = None,
        limit: Limit = DEFAULT_LIMIT,
        after: After = "",
    ) -> SensorsPage:
        found = await registry.page(after=after, limit=limit, online=online)
        return SensorsPage(sensors=found, next_cursor=found[-1].sensor_id if len(found) == limit else None)

    @router.get("/latest", summary="The latest reading of every sensor", dependencies=reader)
    async def get_latest(limit: Limit = DEFAULT_LIMIT, after: After = "") -> LatestPage:
        found = await registry.latest(after=after, limit=limit)
        return LatestPage(readings=found, next_cursor=found[-1].sensor_id if len(found) == limit else None)

    @router.get(
        f"/sensors/{NAME}/{LATEST}",
        summary="The latest reading of a sensor",
        response_model=None,
        responses={200: {"model": LatestReading}, **UNKNOWN},
        dependencies=reader,
    )
    async def get_latest_of_sensor(name: Name, request: Request) -> Sensor | LatestReading:
        if not ends_like(request, LATEST):
            return await registry.one(name)
        sensor = await registry.one(name.removesuffix(f"/{LATEST}"))
        if sensor.latest is None:
            raise NotFound(f"No reading from {sensor.sensor_id!r} yet. New readings appear here within a few seconds.")
        return sensor.latest

    @router.get(f"/sensors/{NAME}", summary="Show a sensor and its status", responses=UNKNOWN, dependencies=reader)
    async def get_sensor(name: Name) -> Sensor:
        return await registry.one(name)

    @router.patch(
        f"/sensors/{NAME}",
        summary="Change a sensor's label, place and limits, or create it",
        responses={
            201: {"model": Sensor, "description": "The sensor is created"},
            **refusals(auth.Scope.INGEST),
            408: {"model": Problem, "description": "The body stopped coming"},
            413: {"model": Problem, "description": "The body is too large"},
            422: {"description": "The change is invalid; detail names each fault"},
        },
        dependencies=[requires(api_keys, auth.Scope.INGEST)],
        openapi_extra={
            "requestBody": {"required": True, "content": {MERGE_PATCH: {"schema": SensorChange.model_json_schema()}}}
        },
    )
    async def patch_sensor(name: Name, change: Annotated[SensorChange, Depends(_change)], response: Response) -> Sensor:
        """Apply a JSON merge patch: absent fields stay, null removes. Needs a key that may send readings. A sensor that
        has sent nothing yet is created, so that its limits and place can be set before it is mounted.
        """
        _require_usable(name)
        sensor, is_new = await registry.change(name, change)
        if is_new:
            response.status_code = 201
        return sensor

    return router


def _require_usable(name: str) -> None:
    """Raise InvalidSensor for a name under which no reading could be stored."""
    try:
        SENSOR_ID.validate_python(name)
    except ValidationError as error:
        raise InvalidSensor(f"The sensor's name can't be used: {error.errors()[0]['msg']}.") from error


async def _change(request: Request) -> SensorChange:
    """Read the body, whatever its type is called. As a dependency it is read after the key; FastAPI reads bodies first,
    and all of them.
    """
    announced_bytes(request, limit_bytes=MAX_CHANGE_BYTES)
    body = b"".join([part async for part in parts_of(request, limit_bytes=MAX_CHANGE_BYTES)])
    try:
        return SensorChange.model_validate_json(body)
    except ValidationError as error:
        # Without the input: it may be what JSON can't show.
        faults = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from error
