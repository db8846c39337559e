"""An engine with a scripted response, for what the API asks of it about jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from app.api.deps import Services
from app.core.engine import workers
from app.core.engine.messages import ServingPath
from app.core.engine.preflight import (
    Chosen,
    DeviceFigures,
    DiskFigures,
    LengthBucket,
    Lines,
    MemoryFigures,
    Preflight,
    TimeFigures,
    TokenFigures,
)
from app.core.engine.serving import Serving
from app.core.engine.state import EngineState
from app.core.engine.wire import Wire
from app.core.engine.workers import WorkerReport
from app.core.storage.database import Database
from tests.factories import make_dataset
from tests.fakes import ServerThread

MODEL = "owner/model"
ANSWER = Preflight(
    rows=10,
    sampled_rows=None,
    training_rows=10,
    evaluation_rows=0,
    tokens=TokenFigures(
        total=1000, mean=100, p50=90, p95=190, max=200, histogram=[LengthBucket(up_to=256, rows=10)]
    ),
    trained_token_share=0.5,
    truncated=Lines(count=0, lines=[]),
    dropped=Lines(count=0, lines=[]),
    optimizer_steps=3,
    padding_share=0.1,
    memory=MemoryFigures(weights=1, lora=1, optimizer=1, activations=1, overhead=1, total=5, paged=0),
    device=DeviceFigures(name="CPU", memory_bytes=10, free_bytes=9),
    fits=True,
    chosen=Chosen(
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        compute_dtype="float32",
        mixed_precision="none",
        max_seq_length=256,
    ),
    disk=DiskFigures(checkpoints=1, adapter=1, free=10),
    time=TimeFigures(seconds=100, sample_seconds=5, tokens_per_second=10, basis="guess"),
    serving=Serving(path=ServingPath.PAGED, reason=None),
    warnings=[],
)


class FakePreflight:
    """Responds to every request with `answer`, and records the requests."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: Wire | None = ANSWER
        self.asked: list[tuple[str, bytes, str]] = []
        self._server = ServerThread(self._app, lifespan="off")

    def register(self, database: Database, state: EngineState | None = None) -> None:
        report = WorkerReport(
            "worker-1", ["serve"], engine_url=self._server.url, engine_token="secret", engine_state=state
        )
        with database.transaction() as session:
            workers.heartbeat(session, report)

    def stop(self) -> None:
        self._server.stop()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        token = dict(scope["headers"])[b"authorization"].decode()
        self.asked.append((scope["path"], body + message["body"], token))
        content = self.answer.model_dump_json().encode() if self.answer else b"nonsense"
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": content})


@pytest.fixture
def engine(services: Services) -> Iterator[FakePreflight]:
    engine = FakePreflight()
    engine.register(services.database)
    yield engine
    engine.stop()


@pytest.fixture
def dataset(services: Services, tmp_path: Path) -> str:
    with services.database.transaction() as session:
        return make_dataset(session, services.store, tmp_path).id
