import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.engine.messages import ServingPath
from app.core.engine.state import EngineState, ServedPath
from app.core.jobs import queue
from app.core.storage.database import Database
from tests.factories import make_adapter, make_job
from tests.fakes import FakeEngine

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 9000, "empty": b""}


@pytest.fixture
def adapter(services: Services, tmp_path: Path) -> str:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    with services.database.transaction() as session:
        row = make_adapter(session)
    services.store.put_folder(row.artifact, folder)
    return row.id


def test_adapters_are_listed(client: TestClient, adapter: str) -> None:
    (listed,) = client.get("/adapters").json()["data"]
    assert listed["id"] == adapter
    assert set(listed) >= {"id", "name", "base_model", "job", "size_bytes", "created_at"}


def test_an_adapter_says_on_which_path_it_is_served_and_how_fast(
    client: TestClient, services: Services, engine: FakeEngine
) -> None:
    with services.database.transaction() as session:
        base = make_adapter(session, name="old").base_model
        make_adapter(session, id="ad_1", name="plain", general_path=[])
        make_adapter(session, id="ad_2", name="odd", general_path=["lora.use_dora", "lora.bias"])
    served = [
        ServedPath(base_model=base, path=ServingPath.GENERAL, tokens_per_second=20),
        ServedPath(base_model=base, path=ServingPath.PAGED, tokens_per_second=200),
    ]
    engine.register(services.database, EngineState(served=served))

    assert {one["name"]: one["serving"] for one in client.get("/adapters").json()["data"]} == {
        "old": None,
        "plain": {"path": "paged", "reason": None, "tokens_per_second": 200},
        "odd": {"path": "general", "reason": "lora.use_dora, lora.bias", "tokens_per_second": 20},
    }
    assert client.get("/adapters/odd").json()["serving"]["path"] == "general"


def test_an_adapter_is_shown_by_id_or_name(client: TestClient, adapter: str) -> None:
    assert client.get("/adapters/helper").json() == client.get(f"/adapters/{adapter}").json()


def test_a_zip_holds_the_folder(client: TestClient, adapter: str) -> None:
    answer = client.get(f"/adapters/{adapter}/download")
    assert answer.headers["content-disposition"] == 'attachment; filename="helper.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"helper/{name}": content for name, content in FILES.items()
        }


def test_a_tar_holds_the_folder(client: TestClient, adapter: str) -> None:
    answer = client.get(f"/adapters/{adapter}/download", params={"format": "tar"})
    assert answer.headers["content-disposition"] == 'attachment; filename="helper.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        found = {name: file.read() for name, file in members.items() if file}
    assert found == {f"helper/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_download_is_the_same_each_time(client: TestClient, adapter: str, kind: str) -> None:
    first, second = (client.get(f"/adapters/helper/download?format={kind}").content for _ in range(2))
    assert first == second


def test_a_deleted_adapter_is_gone_with_its_files(
    client: TestClient, services: Services, adapter: str
) -> None:
    assert client.delete("/adapters/helper").status_code == 204
    assert client.get(f"/adapters/{adapter}").status_code == 404
    assert services.store.list_files(f"adapters/{adapter}") == []


def test_a_deleted_adapter_is_never_used_though_an_engine_holds_it(
    client: TestClient, adapter: str, engine: FakeEngine, database: Database
) -> None:
    engine.register(database, EngineState(adapters=[adapter]))
    ask = {"adapter": adapter, "prompt": "Hello"}
    assert client.post("/generate", json=ask).status_code == 200
    client.delete(f"/adapters/{adapter}")
    answers = [client.post("/generate", json={**ask, "adapter": name}) for name in (adapter, "helper")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert len(engine.requests) == 1


def test_an_adapter_without_files_can_not_be_downloaded(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        make_adapter(session)
    assert client.get("/adapters/helper/download").status_code == 404


def test_an_unknown_adapter_is_not_found(client: TestClient) -> None:
    answer = client.get("/adapters/nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "adapter_not_found"


def test_a_name_with_slashes_downloads_under_a_name_that_is_no_path(
    client: TestClient, database: Database, services: Services
) -> None:
    folder = services.settings.data_dir / "folder"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    services.store.put_folder("adapters/ad_1", folder)
    with database.transaction() as session:
        make_adapter(session, id="ad_1", name="ft:owner/model:tunesmith::x", artifact="adapters/ad_1")
    answer = client.get("/adapters/ft:owner%2Fmodel:tunesmith::x/download")
    assert answer.headers["content-disposition"] == 'attachment; filename="ft-owner-model-tunesmith-x.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["ft-owner-model-tunesmith-x/adapter_model.safetensors"]


def test_an_adapter_that_is_not_made_yet_names_its_job_and_its_step(
    client: TestClient, services: Services
) -> None:
    with services.database.transaction() as session:
        job = make_job(session, name="mine")
        job_id = job.id
    error = client.get("/adapters/mine").json()["error"]
    assert error["message"] == f"There is no adapter 'mine' yet: its job {job_id} is queued."
    with services.database.transaction() as session:
        lease = queue.claim(session, "worker-1", lease_seconds=30)
        assert lease
        queue.record(session, lease, [], queue.JobProgress(step=3, total_steps=40))
    for path in ("/adapters/mine", "/v1/models/mine"):
        message = client.get(path).json()["error"]["message"]
        assert f" yet: its job {job_id} is at step 3 of 40." in message


def test_a_name_with_a_typing_error_gets_the_one_that_was_meant(
    client: TestClient, services: Services
) -> None:
    with services.database.transaction() as session:
        make_adapter(session, name="helper")
    assert client.get("/adapters/helpr").json()["error"]["hint"].startswith("Did you mean 'helper'? ")


def test_the_model_card_is_shown_and_404_where_there_is_none(
    client: TestClient, services: Services, adapter: str, tmp_path: Path
) -> None:
    assert client.get(f"/adapters/{adapter}/card").status_code == 404
    (tmp_path / "README.md").write_text("# helper")
    services.store.put_file("adapters/ad_0000000000000000/README.md", tmp_path / "README.md")
    shown = client.get(f"/adapters/{adapter}/card")
    assert (shown.text, shown.headers["content-type"]) == ("# helper", "text/markdown; charset=utf-8")
