"""A fake Hub for pushes: the HTTP routes that huggingface_hub uses.

Large files are uploaded through git LFS, as where Xet is not used.
"""

import asyncio
import base64
import hashlib
import json
import threading
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes import ServerThread

WRITER, READER, NARROW = "hf_writerwriter", "hf_readerreader", "hf_narrownarrow"
SIGNATURE = "Signature=abcdef0123456789"
# Files that the Hub stores through LFS, whatever their size.
_LARGE = (".safetensors", ".gguf", ".bin")


class WritableHub:
    """Repositories that are created, filled and deleted over HTTP."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[list[str]] = []  # the paths of each
        self.branches: list[str] = []
        self.revisions: list[str] = []  # the branch of each commit
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256
        self.refuses_commits = False
        self.upload_status = 200
        # A large file gets no response until the client disconnects or deletes the repository.
        self.stalls_uploads = False
        self.has_stalled = threading.Event()
        repository = "/api/models/{owner}/{name}"
        routes = [
            Route("/api/whoami-v2", self._whoami),
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/repos/delete", self._delete, methods=["DELETE"]),
            Route("/api/validate-yaml", self._accept, methods=["POST"]),
            Route(repository, self._info),
            Route(repository + "/revision/{revision:path}", self._info),
            Route(repository + "/branch/{revision:path}", self._branch, methods=["POST"]),
            Route(repository + "/preupload/{revision:path}", self._preupload, methods=["POST"]),
            Route(repository + "/commit/{revision:path}", self._commit, methods=["POST"]),
            Route("/{owner}/{name}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
            Route("/large/{sha256}", self._upload, methods=["PUT"]),
        ]
        self._server = ServerThread(Starlette(routes=routes), lifespan="off")
        self.url = self._server.url

    def stop(self) -> None:
        self._server.stop()

    async def _whoami(self, request: Request) -> Response:
        roles = {WRITER: "write", READER: "read", NARROW: "fineGrained"}
        role = roles.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if role is None:
            return JSONResponse({"error": "Invalid credentials in Authorization header"}, 401)
        return JSONResponse({"name": "me", "auth": {"accessToken": {"role": role}}})

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {WRITER}":
            return JSONResponse({"error": "You don't have the rights to create a model"}, 403)
        wanted = await request.json()
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return JSONResponse({"error": "You already created this model repo"}, 409)
        self.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs"}
        self.private[name] = wanted["visibility"] == "private"
        return JSONResponse({"url": f"{self.url}/{name}", "id": name, "name": name})

    async def _delete(self, request: Request) -> Response:
        wanted = await request.json()
        del self.repositories[f"{wanted['organization']}/{wanted['name']}"]
        if self.stalls_uploads:
            await asyncio.sleep(0.5)  # The client learns first that its upload has failed.
        return Response()

    async def _accept(self, _request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def _info(self, request: Request) -> Response:
        name = _name(request)
        if name not in self.repositories:
            return JSONResponse({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.repositories[name]
        siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
        shown: dict[str, Any] = {"_id": "0", "id": name, "sha": "0" * 40, "siblings": siblings, "tags": []}
        return JSONResponse({**shown, "private": self.private.get(name, False)})

    async def _branch(self, request: Request) -> Response:
        self.branches.append(request.path_params["revision"])
        return JSONResponse({})

    async def _preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
            }
            for one in files
        ]
        return JSONResponse({"files": modes})

    async def _batch(self, request: Request) -> Response:
        wanted = (await request.json())["objects"]
        found = [
            {
                **one,
                "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}?{SIGNATURE}"}},
            }
            for one in wanted
        ]
        return JSONResponse({"transfer": "basic", "objects": found})

    async def _upload(self, request: Request) -> Response:
        if self.stalls_uploads:
            self.has_stalled.set()
            async with asyncio.timeout(60):
                while not await request.is_disconnected():
                    if not self.repositories:
                        return JSONResponse({"error": "Repository not found"}, 404)
                    await asyncio.sleep(0.02)
        self.stored[request.path_params["sha256"]] = await request.body()
        return Response(status_code=self.upload_status)

    async def _commit(self, request: Request) -> Response:
        if self.refuses_commits:
            return JSONResponse({"error": "the disk of the Hub is full"}, 400)
        entries = [json.loads(line) for line in (await request.body()).splitlines()]
        values = [entry["value"] for entry in entries if entry["key"] in ("file", "lfsFile")]
        found = {one["path"]: self._content(one) for one in values}
        self.repositories[_name(request)] |= found
        self.commits.append(sorted(found))
        self.revisions.append(request.path_params["revision"])
        oid = hashlib.sha1(b"commit").hexdigest()
        url = f"{self.url}/{_name(request)}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url})

    def _content(self, file: dict[str, str]) -> bytes:
        return base64.b64decode(file["content"]) if "content" in file else self.stored[file["oid"]]


def _name(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"
