"""Serves the dashboard: one page at `/`, which requests its data from the API, its files, and examples."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.dashboard import examples

ASSETS = "/dashboard"
_FOLDER = Path(__file__).with_name("static")
# A browser revalidates each file, so that no page mixes two versions after an upgrade.
_CACHE = {"cache-control": "no-cache"}


class _Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_CACHE)
        return response


def install(app: FastAPI) -> None:
    """Serve the dashboard at `/`."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def show_dashboard() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", headers=_CACHE)

    @app.get(f"{ASSETS}/presets.json", include_in_schema=False)
    def show_presets() -> JSONResponse:
        return JSONResponse(examples.read_presets(), headers=_CACHE)

    @app.get(f"{ASSETS}/first-run.json", include_in_schema=False)
    def show_first_run() -> JSONResponse:
        return JSONResponse(examples.read_first_run(), headers=_CACHE)

    @app.get(f"{ASSETS}/{examples.ROWS}", include_in_schema=False)
    def show_example_rows() -> FileResponse:
        return FileResponse(examples.find_folder() / examples.ROWS, headers=_CACHE)

    app.mount(ASSETS, _Assets(directory=_FOLDER), name="dashboard")


def is_page(path: str) -> bool:
    """Whether a path is the dashboard's."""
    return path == "/" or path.startswith(ASSETS + "/")
