"""Fixtures for preflight: an environment with the tiny model and stored datasets, and an engine process."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from app.core.datasets.rows import Conversation, Message, Row, write_row
from app.core.engine.preflight import DatasetRef, Preflight, PreflightRequest
from app.core.settings import TrainingPath
from tests.factories import make_spec
from tests.tiny_model import NAME
from tests.worker.engine_process import engine_client, start_engine
from worker.models.device import Device, find_device
from worker.preflight.environment import PreflightEnvironment
from worker.processes.child_process import ChildProcess
from worker.processes.reports import TrainingRequest

GPU = Device(kind="cuda", name="A100", memory_bytes=80 << 30, supports_bf16=True, torch_version="2.11.0")

Store = Callable[..., DatasetRef]
Ask = Callable[..., PreflightRequest]


def chat(question: str, answer: str = "Send POST.") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


def make_rows(count: int) -> list[Row]:
    """Chats of different lengths."""
    return [
        chat("How do I cancel a job? " * (1 + index % 5), f"POST number {index}.") for index in range(count)
    ]


@pytest.fixture
def environment(models_folder: Path, tmp_path: Path) -> PreflightEnvironment:
    return PreflightEnvironment(
        models_folder=models_folder,
        artifacts_url=str(tmp_path),
        cache_folder=tmp_path / "cache",
        device=find_device(),
        free_bytes=64 << 30,
        is_busy=False,
        path=TrainingPath.AUTO,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A function that stores rows as a dataset; each row's line is ten times its number."""

    def write(rows: list[Row], name: str = "rows") -> DatasetRef:
        path = tmp_path / name
        path.write_bytes(b"".join(write_row(10 * number, row) for number, row in enumerate(rows, start=1)))
        return DatasetRef(artifact=name, rows=len(rows), size_bytes=path.stat().st_size)

    return write


@pytest.fixture
def ask(store: Store) -> Ask:
    def make(rows: list[Row] | None = None, **spec: Any) -> PreflightRequest:
        fields = {"base_model": NAME, "lora": {"r": 4}, **spec}
        return PreflightRequest(spec=make_spec(**fields), dataset=store(rows or make_rows(20)))

    return make


def codes(answer: Preflight) -> list[str]:
    return [warning.code for warning in answer.warnings]


def make_training_request(
    request: PreflightRequest, environment: PreflightEnvironment, folder: Path
) -> TrainingRequest:
    return TrainingRequest(
        job_id="job_0000000000000000",
        attempt=1,
        spec=request.spec,
        dataset=Path(environment.artifacts_url) / request.dataset.artifact,
        dataset_format="messages" if request.spec.method == "sft" else "comparisons",
        dataset_sha256="0" * 64,
        models_folder=environment.models_folder,
        job_folder=folder / "job",
        output_folder=folder / "adapter",
    )


def with_model(
    environment: PreflightEnvironment, models_folder: Path, folder: Path, model_type: str, architecture: str
) -> PreflightEnvironment:
    """An environment in which the tiny model is one of another family, in `folder`."""
    model = Path(shutil.copytree(models_folder / NAME, folder / NAME))
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": model_type, "architectures": [architecture]}
    (model / "config.json").write_text(json.dumps(config))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return environment.model_copy(update={"models_folder": folder})


@dataclass(frozen=True)
class RunningEngine:
    """The engine's process, started as by a worker."""

    process: ChildProcess
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.base_url.port}"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the engine that all tests share."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def engine(models_folder: Path, shared_folder: Path) -> Iterator[RunningEngine]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        process = start_engine(models_folder, shared_folder, shared_folder, standby=True)
    with engine_client(process) as http:
        yield RunningEngine(process, http)
    process.kill()
    process.close()
