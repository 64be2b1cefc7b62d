"""/docs: the API's page, loaded from this server alone, because a farm or a plant may have no Internet access.

Of the package ``fastapi-offline`` only the static files are used.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse

DOCS_URL = "/docs"
OPENAPI_URL = "/openapi.json"
SCRIPT = "swagger-ui-bundle.js"
STYLE = "swagger-ui.css"
ICON = "favicon.png"
CACHED = {"cache-control": "max-age=86400"}


def docs_router(*, title: str) -> APIRouter:
    """Serve the page and its files."""
    router = APIRouter(prefix=DOCS_URL, include_in_schema=False)
    folder = _files()
    page = get_swagger_ui_html(
        openapi_url=OPENAPI_URL,
        title=title,
        swagger_js_url=f"{DOCS_URL}/{SCRIPT}",
        swagger_css_url=f"{DOCS_URL}/{STYLE}",
        swagger_favicon_url=f"{DOCS_URL}/{ICON}",
        swagger_ui_parameters={"validatorUrl": None},  # it would load a badge from another server
    )

    @router.get("")
    async def get_docs() -> HTMLResponse:
        return page

    def serve(name: str) -> None:
        @router.get(f"/{name}")
        async def get_file() -> FileResponse:
            return FileResponse(folder / name, headers=CACHED)

    for name in (SCRIPT, STYLE, ICON):
        serve(name)
    return router


def _files() -> Path:
    package = find_spec("fastapi_offline")
    assert package is not None, "requirements.txt is not installed"
    assert package.origin is not None
    return Path(package.origin).parent / "static"
