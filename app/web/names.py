"""Sensor names in a URL: exactly what the URL says, whatever characters they have.

Three things on the way would change a name. A route's pattern ends in ``$``, which allows a line feed after it, and its
``.`` matches none. A path that is not UTF-8 is decoded with replacement characters, which a name may have. And ``csv``
drops the line ends around a field. Each of them would let a request about one sensor read or change another.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Path, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import InvalidParameter

SENSORS_PATH = "/api/sensors"
LATEST = "latest"
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|((?!")[^,]*))(,|\Z)', re.DOTALL)


class _AnyText(Convertor[str]):
    """Any characters, slashes and line feeds too."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", _AnyText())
NAME = "{name:name}"
"""The part of a route's path that is a sensor's name."""


class WholePaths:
    """ASGI middleware that keeps a path that ends in a line feed from matching the route of the path without it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with a second line feed that ``$`` does not let pass. Names are read from the raw path."""
        if scope["type"] != "lifespan" and scope["path"].endswith("\n"):
            scope["path"] += "\n"
        await self._app(scope, receive, send)


def ends_like(request: Request, segment: str) -> bool:
    """Return whether this is the path's last segment: a slash before it that is written ``%2F`` belongs to a name."""
    return unquote_to_bytes(request.scope["raw_path"].rpartition(b"/")[2]) == segment.encode()


def _exact_name(request: Request, name: Annotated[str, Path(pattern="^[^\0]+$", examples=["greenhouse-1"])]) -> str:
    """Return the sensor's name from the path as it was sent. ``name`` only documents it; it is never empty and has no
    NUL.
    """
    del name
    try:
        path = unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError:
        raise InvalidParameter("The sensor's name in the path should be percent-encoded UTF-8.") from None
    return path.removeprefix(f"{SENSORS_PATH}/")


Name = Annotated[str, Depends(_exact_name)]
"""A sensor's name in a path. Raises InvalidParameter."""


def utf8_query(request: Request) -> None:
    """Require a UTF-8 query, for routes with names in it. Raises InvalidParameter."""
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError:
        raise InvalidParameter("The query should be percent-encoded UTF-8.") from None


def names_in(values: Sequence[str]) -> list[str]:
    """Return the names in the values of ``sensor_id``: separated by commas, in quotation marks where one needs them.

    Raises:
        InvalidParameter: a quotation mark is not closed, or closed within a name; or a name has a NUL in it.
    """
    names = [name for value in values for name in _fields(value)]
    if any("\0" in name for name in names):
        raise InvalidParameter("sensor_id should have no NUL character (%00).")
    return names


def _fields(value: str) -> Iterator[str]:
    position, separator = 0, ","
    while separator:
        field = _FIELD.match(value, position)
        if field is None:
            raise InvalidParameter(
                f"sensor_id should be names, separated by commas: the quotation mark at character {position + 1} is "
                'not closed before a comma or the end. Inside quotation marks, write " as "".'
            )
        quoted, plain, separator = field.groups()
        yield plain if quoted is None else quoted.replace('""', '"')
        position = field.end()
