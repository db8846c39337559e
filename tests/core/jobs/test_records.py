"""Names of adapters, datasets in use, API keys, workers, base models, artifacts, settings, migrations."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.core.adapters import records as adapter_records
from app.core.datasets import records as dataset_records
from app.core.engine import base_models, workers
from app.core.engine.workers import WorkerReport
from app.core.errors.adapters import AdapterNotFound
from app.core.errors.base_models import ModelNotAllowed, UnknownModel
from app.core.errors.datasets import DatasetInUse
from app.core.jobs import records as job_records
from app.core.keys import records as keys
from app.core.settings import Settings
from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database, is_migrated
from tests.factories import make_dataset, make_job, make_spec


def test_a_taken_adapter_name_gets_the_next_free_number(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        made = []
        for attempt in range(3):
            adapter_id, artifact = adapter_records.name_artifact(job_id, attempt)
            spec = make_spec(name="bot")
            made.append(
                adapter_records.add(
                    session, adapter_id, spec=spec, job_id=job_id, artifact=artifact, size_bytes=1
                )
            )
        assert [adapter.name for adapter in made] == ["bot", "bot-2", "bot-3"]
        assert (
            adapter_records.get(session, "bot-2").id
            == adapter_records.get(session, made[1].id).id
            == made[1].id
        )
        with pytest.raises(AdapterNotFound):
            adapter_records.get(session, "none")


def test_a_dataset_that_a_waiting_job_needs_is_not_deleted(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    store = ArtifactStore(settings.artifacts_url)
    with database.transaction() as session:
        dataset = make_dataset(session, store, tmp_path)
        job = make_job(session, dataset=dataset.id)
        with pytest.raises(DatasetInUse, match=job.id):
            dataset_records.delete(session, dataset.id)
        job_records.request_cancel(session, job.id)
        store.delete(dataset_records.delete(session, dataset.id))
    assert list(Path(settings.artifacts_url).rglob("*.jsonl")) == []


def test_keys_are_stored_hashed_and_invalid_once_revoked(database: Database) -> None:
    with database.transaction() as session:
        key, secret = keys.create(session, "laptop")
        assert secret not in json.dumps([key.sha256, key.name, key.id])
        assert keys.find_valid(session, secret)
        assert not keys.find_valid(session, secret + "x")
        keys.revoke(session, key.id)
        assert not keys.find_valid(session, secret)
        assert not keys.any_exist(session)


def test_a_silent_worker_counts_as_dead_and_is_forgotten(database: Database) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    later = now + timedelta(seconds=31)
    with database.transaction() as session:
        workers.heartbeat(session, WorkerReport("w1", ["train", "serve"]), now=now)
        workers.heartbeat(session, WorkerReport("w2", ["train"]), now=later)
        alive = workers.find_alive(session, lease_seconds=30, now=later)
        assert [worker.id for worker in alive] == ["w2"]
        assert workers.find_alive(session, lease_seconds=30, role="serve", now=later) == []
        workers.forget_dead(session, older_than_seconds=30, now=later)
        assert len(workers.find_alive(session, lease_seconds=1000, now=later)) == 1


def test_a_base_model_is_a_folder_or_a_hub_id_on_the_allow_list(settings: Settings) -> None:
    folder = settings.models_folder / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    assert [(model.name, model.context_length) for model in base_models.find_local(settings)] == [
        ("small", 512)
    ]
    base_models.check("small", settings, base_models.find_names(settings))
    base_models.check("owner/model", settings, [])
    with pytest.raises(UnknownModel, match="large"):
        base_models.check("large", settings, base_models.find_names(settings))
    narrow = settings.model_copy(update={"allowed_models": ["small"]})
    with pytest.raises(ModelNotAllowed):
        base_models.check("owner/model", narrow, [])


def test_artifacts_in_an_object_store_are_fetched_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "nested").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "nested" / "b.txt").write_text("bb")
    store = ArtifactStore("memory://tunesmith-tests")
    assert store.put_folder("adapters/ad_1", source) == 3
    assert store.list_files("adapters/ad_1") == ["a.txt", "nested/b.txt"]
    fetched = store.fetch("adapters/ad_1", ArtifactCache(tmp_path / "cache"))
    assert (fetched / "nested" / "b.txt").read_text() == "bb"
    store.delete("adapters/ad_1")
    with pytest.raises(FileNotFoundError):
        store.fetch("adapters/ad_1", ArtifactCache(tmp_path / "cache"))


def test_settings_come_from_the_environment_and_from_secret_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("tsk_hidden\n")
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TUNESMITH_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("TUNESMITH_WEBHOOK_SECRET_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("TUNESMITH_ALLOWED_MODELS", "a/b, small")
    settings = Settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "tsk_hidden"
    assert settings.webhook_secret is not None
    assert settings.webhook_secret.get_secret_value() == "tsk_hidden"
    assert "tsk_hidden" not in repr(settings)
    assert settings.allowed_models == ["a/b", "small"]
    assert settings.models_folder == tmp_path / "models"


def test_a_new_file_is_not_migrated_and_the_fixture_is(database: Database, tmp_path: Path) -> None:
    fresh = Database(f"sqlite:///{tmp_path / 'fresh.db'}")
    assert is_migrated(database)
    assert not is_migrated(fresh)
    fresh.close()
