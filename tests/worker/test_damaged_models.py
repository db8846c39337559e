"""Damaged base models, hostile templates and odd rows: each ends in an error that names it, never internal.

Each is previewed, looked at by a preflight, trained on and generated from, as a user would, in this process.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from app.core.datasets.rows import Conversation, DatasetFormat, Message, Row, write_row
from app.core.engine.messages import BaseModelRef, ChatMessage, Failed, GenerateRequest, ServingPath
from app.core.engine.preflight import DatasetRef, PreflightRequest, Preview, PreviewRequest
from app.core.settings import TrainingPath
from app.core.specs.job import QuantizationSpec
from app.core.storage.artifacts import ArtifactStore
from tests.factories import make_spec
from tests.tiny_model import NAME
from tests.worker.damaged.configs import CONFIGS
from tests.worker.damaged.damages import Damage, make_damaged
from tests.worker.damaged.rows import ROWS
from tests.worker.damaged.templates import TEMPLATES
from tests.worker.damaged.tokenizers import TOKENIZERS
from tests.worker.damaged.weights import WEIGHT_FILES
from tests.worker.engine_process import engine_request
from worker.inference.adapters.cache import AdapterCache
from worker.inference.base_folders import BaseFolders
from worker.inference.failures import ModelUnsupported, failed
from worker.inference.general.paths import ServingPaths
from worker.inference.loading import load_runner
from worker.inference.preprocessing import Preprocessor
from worker.models.device import find_device
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.service import RUN_PREFLIGHT, RUN_PREVIEW, run_safely
from worker.processes.reports import Outcome, TrainingRequest
from worker.training.run import run

DEVICE = find_device()
INTERNAL = {"internal_error", "preflight_error", "engine_error"}
LONGEST_MESSAGE = 600
GOOD_ROWS: list[Row] = [
    Conversation((Message("user", "How do I cancel a job? " * count), Message("assistant", "Send POST.")))
    for count in (1, 2, 3)
]
Failure = tuple[str, str, str | None]  # code, message, hint


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class User:
    """Does with one base model and one dataset what a user does; each step returns its error, or None."""

    def __init__(self, folder: Path, model: str, rows: list[Row], *, is_intact: bool) -> None:
        self.folder = folder
        self.model = model
        self.is_intact = is_intact  # whether loading the weights has nothing to show
        self.rows = folder / "rows"
        self.rows.write_bytes(b"".join(write_row(line, row) for line, row in enumerate(rows, start=1)))
        self.dataset = DatasetRef(artifact="rows", rows=len(rows), size_bytes=self.rows.stat().st_size)
        self.spec = make_spec(
            base_model=model,
            lora={"r": 4},
            training={"max_steps": 1, "optim": "adamw_torch"},
        )
        self.environment = PreflightEnvironment(
            models_folder=folder / "models",
            artifacts_url=str(folder),
            cache_folder=folder / "cache",
            device=DEVICE,
            free_bytes=64 << 30,
            is_busy=False,
            path=TrainingPath.AUTO,
        )

    def preview(self) -> Failure | None:
        request = PreviewRequest(
            base_model=self.model, dataset=self.dataset, limit=10, assistant_only_loss=False
        )
        answer = run_safely(RUN_PREVIEW, request, self.environment)
        assert isinstance(answer, Failed | Preview)
        return self._read(answer)

    def preflight(self) -> Failure | None:
        request = PreflightRequest(spec=self.spec, dataset=self.dataset)
        return self._read(run_safely(RUN_PREFLIGHT, request, self.environment))

    def train(self) -> Failure | None:
        request = TrainingRequest(
            job_id="job_0000000000000000",
            attempt=1,
            spec=self.spec,
            dataset=self.rows,
            dataset_format=DatasetFormat.MESSAGES,
            dataset_sha256="0" * 64,
            models_folder=self.environment.models_folder,
            job_folder=self.folder / "job",
            output_folder=self.folder / "adapter",
        )
        ended = run(request, lambda report: None, threading.Event())
        if ended.outcome is Outcome.FINISHED:
            return None
        return ended.code or "", ended.message or "", ended.hint

    def generate(self) -> Failure | None:
        models = self.environment.models_folder
        adapters = AdapterCache(ArtifactStore(str(self.folder)), self.folder / "cache", 1 << 30)
        base = BaseModelRef(name=self.model, quantization=QuantizationSpec(load_in_4bit=False))
        messages = [ChatMessage(role="user", content="hello")]
        request = engine_request(models, cache_share=1e-4, max_rows=2)
        try:
            prompt = Preprocessor(BaseFolders(models), adapters, DEVICE, ServingPaths()).prepare(
                GenerateRequest(base_model=base, messages=messages)
            )
            prompt.decode(list(prompt.token_ids))
            if self.is_intact:
                return None
            try:
                load_runner(request, DEVICE, base)
            except ModelUnsupported:  # the engine then takes the other path
                load_runner(request, DEVICE, base.model_copy(update={"path": ServingPath.GENERAL}))
        except Exception as error:
            return self._read(failed(error))
        return None

    def _read(self, answer: BaseModel) -> Failure | None:
        if not isinstance(answer, Failed):
            answer.model_dump_json()
            return None
        assert answer.kind != "internal", answer
        return answer.code, answer.message, answer.hint

    def do_all(self) -> dict[str, Failure | None]:
        """Everything, and what each ended with; each error is checked for its words."""
        steps = (self.preview, self.preflight, self.train, self.generate)
        outcomes: dict[str, Failure | None] = {step.__name__: step() for step in steps}
        for outcome in outcomes.values():
            if outcome is not None:
                self._check(*outcome)
        return outcomes

    def _check(self, code: str, message: str, hint: str | None) -> None:
        assert code, message
        assert code not in INTERNAL, message
        assert hint, message
        assert str(self.folder) not in message
        assert "\n" not in message
        assert len(message) <= LONGEST_MESSAGE


MakeUser = Callable[..., User]


@pytest.fixture
def make_user(models_folder: Path, tmp_path: Path) -> MakeUser:
    """A user of a damaged copy of the tiny model."""

    def make(
        damage: Damage = lambda folder: None, rows: list[Row] = GOOD_ROWS, *, is_intact: bool = False
    ) -> User:
        (tmp_path / "models").mkdir()
        make_damaged(tmp_path / "models", models_folder / NAME, "damaged", damage)
        return User(tmp_path, "damaged", rows, is_intact=is_intact)

    return make


def parametrized(cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "case"), cases.items(), ids=cases.keys())


# Damages that transformers passes over, so that the job trains.
HARMLESS = {
    *("architectures number", "architectures null", "quantization fp8", "quantization mxfp4"),
    *("added token beyond", "tokenizer_config missing", "class unknown", "class remote", "template object"),
    *("template named", "template empty list", "template file a folder", "end token null"),
    *("no special tokens", "pad token new", "weights without format", "integers"),
}
HARMLESS_TEMPLATES = {"empty", "generation nested", "without messages"}
REFUSED_ROWS = {"no turns"}
# Found only once the weights are read.
IN_TENSORS = {"wrong shapes", "not a number", "one tensor missing", "names unknown"}


@parametrized(CONFIGS)
def test_a_damaged_config_is_named(make_user: MakeUser, name: str, case: Damage) -> None:
    outcomes = make_user(case).do_all()

    assert outcomes["train"] is not None or name in HARMLESS


@parametrized(TOKENIZERS)
def test_a_damaged_tokenizer_is_named(make_user: MakeUser, name: str, case: Damage) -> None:
    outcomes = make_user(case).do_all()

    assert outcomes["train"] is not None or name in HARMLESS


@parametrized(WEIGHT_FILES)
def test_damaged_weights_are_named_before_the_job(make_user: MakeUser, name: str, case: Damage) -> None:
    outcomes = make_user(case).do_all()

    assert outcomes["train"] is not None or name in HARMLESS
    assert outcomes["preflight"] == outcomes["train"] or name in IN_TENSORS


@parametrized(TEMPLATES)
def test_a_template_may_raise_anything(make_user: MakeUser, name: str, case: str) -> None:
    outcomes = make_user(lambda folder: write_template(folder, case), is_intact=True).do_all()

    assert outcomes["preflight"] == outcomes["train"]
    if name not in HARMLESS_TEMPLATES:
        assert outcomes["train"] is not None


@parametrized(ROWS)
def test_odd_rows_train_or_are_named(make_user: MakeUser, name: str, case: Row) -> None:
    outcomes = make_user(rows=[case, GOOD_ROWS[0]], is_intact=True).do_all()

    assert (outcomes["train"] is None) == (name not in REFUSED_ROWS)
    assert outcomes["preflight"] == outcomes["train"]


def write_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
