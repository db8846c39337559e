"""What the Hub answers to a push, from a stand-in that huggingface_hub really talks to."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.core.errors import HubRefused, HubRepositoryExists, HubUnreachable
from tests.fakes import ServerThread
from worker.exports import hub

WRITER, READER = "hf_writerwriter", "hf_readerreader"


class WritableHub:
    """Repositories that are made, filled and removed over HTTP; small files only."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refuses_commits = False
        repository = "/api/models/{owner}/{name}"
        routes = [
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/repos/delete", self._delete, methods=["DELETE"]),
            Route("/api/validate-yaml", self._accept, methods=["POST"]),
            Route(repository, self._info),
            Route(repository + "/revision/{revision}", self._info),
            Route(repository + "/preupload/{revision}", self._preupload, methods=["POST"]),
            Route(repository + "/commit/{revision}", self._commit, methods=["POST"]),
        ]
        self._server = ServerThread(Starlette(routes=routes), lifespan="off")
        self.url = self._server.url

    def stop(self) -> None:
        self._server.stop()

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {WRITER}":
            return JSONResponse({"error": "You don't have the rights to create a model"}, 403)
        wanted = await request.json()
        name = f"{wanted['organization']}/{wanted['name']}"
        self.repositories[name] = {}
        self.private[name] = wanted["visibility"] == "private"
        return JSONResponse({"url": f"{self.url}/{name}", "id": name, "name": name})

    async def _delete(self, request: Request) -> Response:
        wanted = await request.json()
        del self.repositories[f"{wanted['organization']}/{wanted['name']}"]
        return Response()

    async def _accept(self, _request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def _info(self, request: Request) -> Response:
        name = _name(request)
        if name not in self.repositories:
            return JSONResponse({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.repositories[name]
        siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
        return JSONResponse({"_id": "0", "id": name, "sha": "0" * 40, "siblings": siblings, "tags": []})

    async def _preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        plain = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
        return JSONResponse({"files": plain})

    async def _commit(self, request: Request) -> Response:
        if self.refuses_commits:
            return JSONResponse({"error": "the disk of the Hub is full"}, 400)
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.repositories[_name(request)][entry["value"]["path"]] = content
        oid = hashlib.sha1(b"commit").hexdigest()
        url = f"{self.url}/{_name(request)}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url})


def _name(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    made = WritableHub()
    # huggingface_hub reads its address once, when it is imported; each client may be told another.
    monkeypatch.setattr(hub, "HfApi", lambda: real(endpoint=made.url, token=hub.get_token()))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield made
    made.stop()


real = hub.HfApi


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "README.md").write_text("# helper\n")
    (made / "config.json").write_text("{}")
    return made


def push(folder: Path, *, update: bool = False) -> str:
    return hub.push(folder, "me/helper", private=True, update=update, message="made")


def test_a_folder_becomes_a_private_repository(the_hub: WritableHub, folder: Path) -> None:
    hub.check("me/helper", update=False)

    assert push(folder) == f"{the_hub.url}/me/helper"
    assert the_hub.private["me/helper"]
    assert the_hub.repositories["me/helper"]["README.md"] == b"# helper\n"


def test_a_repository_that_exists_is_pushed_to_only_on_request(the_hub: WritableHub, folder: Path) -> None:
    the_hub.repositories["me/helper"] = {}
    with pytest.raises(HubRepositoryExists, match="me/helper"):
        hub.check("me/helper", update=False)

    push(folder, update=True)

    assert "config.json" in the_hub.repositories["me/helper"]


def test_a_token_without_write_rights_is_refused(
    the_hub: WritableHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)

    with pytest.raises(HubRefused, match="may not write to me/helper") as refused:
        push(folder)
    assert READER not in refused.value.message


def test_without_a_token_nothing_begins(
    the_hub: WritableHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)

    with pytest.raises(HubRefused, match="no token"):
        hub.check("me/helper", update=False)


def test_a_push_that_fails_leaves_no_empty_repository(the_hub: WritableHub, folder: Path) -> None:
    the_hub.refuses_commits = True

    with pytest.raises(HubRefused, match="disk of the Hub is full"):
        push(folder)
    assert the_hub.repositories == {}


def test_a_hub_that_is_away_is_named(the_hub: WritableHub, folder: Path) -> None:
    the_hub.stop()

    with pytest.raises(HubUnreachable):
        push(folder)
