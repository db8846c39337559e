"""The tiny model and its tokenizer, and a job runner whose children follow scripts."""

import itertools
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from app.core.jobs import queue
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from tests.tiny_model import NAME, make_tiny_model
from tests.worker.runners.job_runs import make_runner
from worker.processes.prewarmed import PrewarmedTrainer
from worker.runners.jobs import JobRunner
from worker.templates.rendering import text


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models")).parent


@pytest.fixture(scope="session")
def tokenizer(models_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(models_folder / NAME)


@pytest.fixture
def a_day_passes_at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that a chat template reads the clock of transformers, it is a day later.

    Chat templates are rendered in this process, whose clock this is.
    """
    days = itertools.count()

    class FakeClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2030, 1, 1, tzinfo=tz) + timedelta(days=next(days))

    monkeypatch.setattr(text, "is_known", lambda template: True)
    monkeypatch.setattr(chat_template_utils, "datetime", FakeClock)


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_url)


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def claimed(database: Database, store: ArtifactStore, tmp_path: Path) -> Callable[..., JobLease]:
    """Submits a job whose child follows the named script, and claims it."""

    def submit_and_claim(script: str, **spec: Any) -> JobLease:
        with database.transaction() as session:
            dataset = make_dataset(session, store, tmp_path)
            make_job(session, name=script, dataset=dataset.id, **spec)
            lease = queue.claim(session, "worker", lease_seconds=30)
        assert lease is not None
        return lease

    return submit_and_claim


@pytest.fixture
def runner(settings: Settings, database: Database, store: ArtifactStore, stop: threading.Event) -> JobRunner:
    brisk = settings.model_copy(update={"cancel_grace_seconds": 0.5, "shutdown_grace_seconds": 0.5})
    prewarmed = PrewarmedTrainer(brisk, "worker", module="tests.scripted.training")
    return make_runner(brisk, database, store, prewarmed, stop)
