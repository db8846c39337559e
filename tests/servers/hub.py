"""A fake Hub for reading datasets and models: the HTTP routes that the Hub's libraries use, with real files.

`HF_ENDPOINT=hub.url` points the libraries at it.
"""

import asyncio
import hashlib
import io
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pyarrow
import pyarrow.parquet
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes import ServerThread

TOKEN = "hf_good"


def parquet(**columns: list[Any]) -> bytes:
    """A Parquet file with these columns."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@dataclass
class Repository:
    """A repository with one commit."""

    files: dict[str, bytes]
    is_gated: bool = False
    is_private: bool = False
    # What a search says of it: `tags`, `pipeline_tag`, `safetensors`, `downloads`.
    about: dict[str, Any] = field(default_factory=dict)
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha = hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class FakeHub:
    """Serves repositories of datasets and models; `requests` records the method and path of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.broken_status: int | None = None
        self.stalls_downloads = False  # a request for a file gets no response until the client disconnects
        self.has_stalled = threading.Event()
        routes = [
            route
            for kind, files in (("datasets", "/datasets"), ("models", ""))
            for route in self._make_routes(f"/api/{kind}/{{owner}}/{{name}}", files)
        ]
        routes.append(Route("/api/models", self._search))
        self._server = ServerThread(Starlette(routes=routes), lifespan="off")
        self.url = self._server.url

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def stop(self) -> None:
        self._server.stop()

    def _make_routes(self, api: str, files: str) -> list[Route]:
        return [
            Route(api, self._answer(_info)),
            Route(api + "/revision/{revision}", self._answer(_info)),
            Route(api + "/tree/{revision}", self._answer(_tree)),
            Route(api + "/tree/{revision}/{path:path}", self._answer(_tree)),
            Route(api + "/paths-info/{revision}", self._answer(_paths_info), methods=["POST"]),
            Route(files + "/{owner}/{name}/resolve/{revision}/{path:path}", self._answer(self._file)),
        ]

    def _answer(self, serve: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            self.requests.append(f"{request.method} {request.url.path}")
            if self.broken_status:
                return Response(status_code=self.broken_status)
            owner, name = request.path_params["owner"], request.path_params["name"]
            repository = self.repositories.get(f"{owner}/{name}")
            refusal = _refusal(repository, request)
            if refusal or repository is None:
                return refusal or _error(404, "RepoNotFound")
            answer: Response = await serve(request, repository)
            return answer

        return endpoint

    async def _search(self, request: Request) -> Response:
        self.requests.append(f"{request.method} {request.url.path}")
        self.tokens.append(request.headers.get("authorization"))
        if self.broken_status:
            return Response(status_code=self.broken_status)
        words, tags = request.query_params.get("search", ""), request.query_params.getlist("filter")
        found = [
            {"_id": "0", "id": name, "gated": "auto" if repository.is_gated else False, **repository.about}
            for name, repository in self.repositories.items()
            if words.lower() in name.lower() and set(tags) <= set(repository.about.get("tags", []))
        ]
        found.sort(key=lambda one: -one.get("downloads", 0))
        return JSONResponse(found[: int(request.query_params.get("limit", 1000))])

    async def _file(self, request: Request, repository: Repository) -> Response:
        path = request.path_params["path"]
        content = repository.files.get(path)
        if content is None:
            return _error(404, "EntryNotFound")
        if self.stalls_downloads and request.method == "GET":
            self.has_stalled.set()
            async with asyncio.timeout(60):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        return _ranged(request, content, repository.sha)


def _refusal(repository: Repository | None, request: Request) -> Response | None:
    has_token = request.headers.get("authorization") == f"Bearer {TOKEN}"
    if repository is None or (repository.is_private and not has_token):
        return _error(404 if has_token else 401, "RepoNotFound")
    if request.path_params.get("revision", "main") not in ("main", "v1", repository.sha):
        return _error(404, "RevisionNotFound")
    # Everyone may read the description of a gated repository, but not its files.
    if repository.is_gated and not has_token and "/resolve/" in request.url.path:
        return _error(401, "GatedRepo")
    return None


def _error(status: int, code: str) -> Response:
    return JSONResponse({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})


async def _info(request: Request, repository: Repository) -> Response:
    name = f"{request.path_params['owner']}/{request.path_params['name']}"
    return JSONResponse(
        {
            "_id": "0",
            "id": name,
            "sha": repository.sha,
            "private": repository.is_private,
            "gated": "auto" if repository.is_gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in repository.files],
        }
    )


async def _tree(request: Request, repository: Repository) -> Response:
    folder = request.path_params.get("path", "").strip("/")
    prefix = folder + "/" if folder else ""
    inside = [path for path in repository.files if path.startswith(prefix)]
    if folder and not inside:
        return _error(404, "EntryNotFound")
    is_recursive = request.query_params.get("recursive", "").lower() == "true"
    folders = {prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]}
    entries = [_describe_folder(path) for path in sorted(folders)]
    entries += [
        _describe_file(path, repository) for path in inside if is_recursive or "/" not in path[len(prefix) :]
    ]
    return JSONResponse(entries)


async def _paths_info(request: Request, repository: Repository) -> Response:
    form = await request.form()
    paths = [str(path).strip("/") for path in form.getlist("paths")]
    folders = {part for path in repository.files for part in _parents(path)}
    found = [_describe_file(path, repository) for path in paths if path in repository.files]
    return JSONResponse(found + [_describe_folder(path) for path in paths if path in folders])


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _describe_file(path: str, repository: Repository) -> dict[str, object]:
    content = repository.files[path]
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _describe_folder(path: str) -> dict[str, object]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _ranged(request: Request, content: bytes, sha: str) -> Response:
    headers = {
        "X-Repo-Commit": sha,
        "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(0, usegmt=True),
    }
    wanted = request.headers.get("range")
    if request.method == "HEAD" or not wanted:
        body = Response(content, headers=headers)
        return body
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
    if start >= len(content):
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    return Response(content[start : end + 1], 206, headers)
