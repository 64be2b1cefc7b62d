"""/docs: the API's page, loaded from this server alone, because a farm or a plant may have no Internet access.

Of the package ``fastapi-offline`` only the static files are used.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

DOCS_URL = "/docs"
OPENAPI_URL = "/openapi.json"
SCRIPT = "swagger-ui-bundle.js"
STYLE = "swagger-ui.css"
ICON = "favicon.png"
CACHED = {"cache-control": "max-age=86400"}


def docs_router(*, title: str) -> APIRouter:
    """Serve the page, its files and the document that it shows."""
    router = APIRouter(include_in_schema=False)
    folder = Path(str(files("fastapi_offline"))) / "static"
    page = get_swagger_ui_html(
        openapi_url=OPENAPI_URL,
        title=title,
        swagger_js_url=f"{DOCS_URL}/{SCRIPT}",
        swagger_css_url=f"{DOCS_URL}/{STYLE}",
        swagger_favicon_url=f"{DOCS_URL}/{ICON}",
        swagger_ui_parameters={"validatorUrl": None},  # it would load a badge from another server
    )

    @router.get(DOCS_URL)
    async def get_docs() -> HTMLResponse:
        return page

    @router.get(f"{DOCS_URL}/{{name}}")
    async def get_file(name: str) -> FileResponse:
        if name not in (SCRIPT, STYLE, ICON):
            raise HTTPException(404)
        return FileResponse(folder / name, headers=CACHED)

    # FastAPI's own route for it is not in the request's scope, and would be counted as an unknown path.
    @router.api_route(OPENAPI_URL, methods=["GET", "HEAD"])
    async def get_openapi(request: Request) -> dict[str, Any]:
        document: dict[str, Any] = request.app.openapi()
        return document

    return router
