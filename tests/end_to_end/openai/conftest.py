"""The official OpenAI client, unmodified, against a running API and a running engine with a real model."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.storage.database import Database, migrate
from app.main import create_app
from tests.end_to_end.openai.calls import MODEL, QUANTIZATION
from tests.factories import make_adapter
from tests.fakes import ServerThread
from tests.tiny_model import make_tiny_model
from tests.worker.engine_process import start_engine
from tests.worker.inference.conftest import ADAPTERS, save_adapter
from tests.worker.inference.test_server import RunningEngine, add_long_model, connect


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder)
    add_long_model(folder)
    return folder


@pytest.fixture(scope="module")
def engine(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """An engine process with the adapters `attention` and `everything`."""
    folder = tmp_path_factory.mktemp("engine")
    for seed, name in enumerate(("attention", "everything")):
        save_adapter(models_folder / MODEL, folder / "artifacts" / name, seed=seed, **ADAPTERS[name])
    process = start_engine(models_folder, folder / "artifacts", folder)
    with connect(process) as engine:
        yield engine
    process.kill()
    process.close()


@pytest.fixture(scope="module")
def url(
    models_folder: Path, engine: RunningEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The API on a real socket, with the engine in its table of workers."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), models_dir=models_folder, lease_seconds=3600
    )
    migrate(settings.database_url)
    database = Database(settings.database_url)
    with database.transaction() as session:
        for number, name in enumerate(("attention", "everything")):
            make_adapter(
                session,
                id=f"ad_{number:016}",
                name=name,
                artifact=name,
                base_model=MODEL,
                quantization=QUANTIZATION,
            )
        address = str(engine.http.base_url).rstrip("/")
        workers.heartbeat(
            session, WorkerReport("worker-1", ["serve"], engine_url=address, engine_token="secret")
        )
    server = ServerThread(create_app(settings))
    yield f"{server.url}/v1"
    server.stop()
    database.close()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client
