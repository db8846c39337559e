import hashlib
from pathlib import Path

import pytest

from app.core.exports.queue import ExportResult, export_queue
from app.core.exports.results import ExportedFile
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.cli.conftest import Run, json_of
from tests.core.exports.test_queue import AGREEMENT

CONTENT = bytes(range(256)) * 5000


def finish(database: Database, settings: Settings, folder: Path) -> None:
    """A worker makes the oldest export."""
    (folder / "model.gguf").write_bytes(CONTENT)
    with database.transaction() as session:
        lease = export_queue.claim(session, lease_seconds=30, max_attempts=3)
        assert lease is not None
        store = ArtifactStore(settings.artifacts_url)
        store.put_file(f"{lease.artifact}/model.gguf", folder / "model.gguf")
        digest = hashlib.sha256(CONTENT).hexdigest()
        made = ExportedFile(name="model.gguf", size_bytes=len(CONTENT), sha256=digest)
        export_queue.finish(session, lease, ExportResult(files=[made], agreement=AGREEMENT, notes=[]))


@pytest.fixture
def export(run: Run, adapter: str) -> str:
    """The id of an export that waits."""
    return run("exports", "create", adapter, "--type", "q8_0").stdout.strip()


def test_an_export_is_made_shown_and_downloaded(
    run: Run, export: str, database: Database, settings: Settings, tmp_path: Path
) -> None:
    assert json_of(run("exports", "list", "--json"))["data"][0]["id"] == export
    finish(database, settings, tmp_path)
    shown = run("exports", "show", export, "--wait")
    assert "gguf q8_0" in shown.stdout
    assert "mean KL" in shown.stdout
    target = tmp_path / "helper.gguf"
    assert run("exports", "download", export, "-o", str(target)).exit_code == 0
    assert target.read_bytes() == CONTENT


def test_several_types_are_one_export(run: Run, adapter: str) -> None:
    options = ("--type", "q4_k_m", "--type", "q6_k", "--importance-matrix")
    made = json_of(run("exports", "create", adapter, *options, "--json"))

    assert (made["spec"]["type"], made["spec"]["importance_matrix"]) == (["q4_k_m", "q6_k"], True)
    assert "gguf q4_k_m q6_k" in run("exports", "show", made["id"]).stdout
    refused = run("exports", "create", adapter, "--type", "q4_9")
    assert refused.exit_code != 0
    assert "q4_k_m" in refused.stderr


def test_a_push_has_its_branch_its_tags_and_an_existing_repository(run: Run, adapter: str) -> None:
    options = ("--repository", "me/helper", "--revision", "v2", "--tag", "a", "--tag", "b", "--update")
    spec = json_of(run("exports", "create", adapter, "--format", "hub", *options, "--json"))["spec"]
    assert (spec["revision"], spec["tags"], spec["update"]) == ("v2", ["a", "b"], True)


def test_an_export_by_gptq_says_how_much_it_is_calibrated_on(run: Run, adapter: str) -> None:
    options = ("--format", "gptq", "--calibration-tokens", "1000")
    made = json_of(run("exports", "create", adapter, *options, "--json"))

    assert (made["spec"]["format"], made["spec"]["calibration_tokens"]) == ("gptq", 1000)


def test_a_cancelled_export_is_retried_and_deleted(run: Run, export: str) -> None:
    assert run("exports", "cancel", export).stdout.split()[-1] == "cancelled"
    waited = run("exports", "show", export, "--wait")
    assert (waited.exit_code, "The export is cancelled." in waited.stderr) == (1, True)
    assert run("exports", "retry", export).stdout.split()[-1] == "queued"
    refused = run("exports", "rm", export, "--yes")
    assert refused.exit_code == 6
    assert f"`tunesmith exports cancel {export}`" in refused.stderr
    run("exports", "cancel", export)
    assert json_of(run("exports", "rm", export, "--yes", "--json")) == {"deleted": [export]}
