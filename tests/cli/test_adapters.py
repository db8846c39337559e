import zipfile
from pathlib import Path

import pytest

from app.core.engine.messages import MadeToken, TokenDelta
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.adapter_archives import peft_files, zipped
from tests.cli.conftest import Run, json_of
from tests.factories import make_adapter
from tests.fakes import FINISHED, FakeEngine


def test_an_adapter_is_downloaded_whole_and_never_over_another_file(
    run: Run, adapter: str, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    ArtifactStore(settings.artifacts_url).put_folder("adapters/ad_0000000000000000", folder)
    target = tmp_path / "helper.zip"
    assert json_of(run("adapters", "download", adapter, "-o", str(target), "--json"))["path"] == str(target)
    assert zipfile.ZipFile(target).namelist() == ["helper/adapter_model.safetensors"]
    assert run("adapters", "download", adapter, "-o", str(target)).exit_code == 2
    assert sorted(path.name for path in tmp_path.glob("helper*")) == ["helper.zip"]


def test_an_adapter_with_a_slash_in_its_name_is_found(run: Run, database: Database) -> None:
    with database.transaction() as session:
        make_adapter(session, name="ft:owner/model:me::1")
    assert json_of(run("adapters", "show", "ft:owner/model:me::1", "--json"))["state"] == "ready"
    assert json_of(run("adapters", "rm", "ft:owner/model:me::1", "-y", "--json"))["deleted"]


def test_nothing_is_deleted_where_nobody_can_be_asked(run: Run, adapter: str) -> None:
    assert run("adapters", "rm", adapter).exit_code == 2
    assert json_of(run("adapters", "show", adapter, "--json"))["name"] == adapter


@pytest.mark.parametrize("packed", [True, False])
def test_an_adapter_trained_elsewhere_is_imported_from_an_archive_or_a_folder(
    run: Run, engine: FakeEngine, database: Database, tmp_path: Path, packed: bool
) -> None:
    engine.register(database)
    engine.scripts = [
        [TokenDelta(text="A", tokens=[MadeToken(token_id=1, bytes=[65], logprob=value, top=[])]), FINISHED]
        for value in (-0.5, -0.7)
    ]
    path = tmp_path / "mine"
    path.mkdir()
    for name, content in peft_files().items():
        (path / name).write_bytes(content)
    if packed:
        path = path.with_suffix(".zip")
        path.write_bytes(zipped(peft_files()))
    answer = json_of(run("adapters", "import", str(path), "--no-load-in-4bit", "--json"))
    assert (answer["state"], answer["name"]) == ("ready", "mine")


def test_an_import_that_can_not_be_used_fails_with_the_reason(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(zipped({"weights.bin": b"a pickle"}))
    ended = run("adapters", "import", str(tmp_path / "mine.zip"))
    assert (ended.exit_code, "Error: " in ended.stderr) == (1, True)
