"""The service's own pages, served from memory: they need no disk, thread or database, and load nothing else."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

_FOLDER = Path(__file__).with_name("dashboard")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


def pages() -> APIRouter:
    """Routes of the dashboard (``/``), the description of the API (``/docs``), and what they load (``/static``)."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
    answers = {name: Response(path.read_bytes(), media_type=_TYPES[path.suffix]) for name, path in files.items()}

    def page(name: str) -> Response:
        if name not in answers:
            raise HTTPException(404, "there is no such page")
        kept = answers[name]
        return Response(kept.body, media_type=kept.media_type, headers={"cache-control": "no-cache"})

    @router.get("/")
    async def dashboard() -> Response:
        return page("index.html")

    @router.get("/docs")
    async def description() -> Response:
        return page("docs.html")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        return page(name)

    return router
