"""Fixtures for tests of exports: PEFT folders with random weights for the tiny model. Nothing is trained."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from app.core.exports import records as export_records
from app.core.specs.export import GgufType, export_spec_adapter
from app.core.specs.job import QuantizationSpec
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_adapter as make_adapter_row
from tests.tiny_model import NAME
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.file import write_gguf
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.merge import read_shape
from worker.exports.reports import Exported, ExportFailed, ExportRequest
from worker.models.files import description

MakeAdapter = Callable[..., Path]
PROMPTS = [[0, 5, 9, 40, 77, 130], [0, 200, 31, 8], [0, 12, 13, 14, 15, 16, 17, 18]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


@pytest.fixture
def base(models_folder: Path) -> Path:
    return models_folder / NAME


@pytest.fixture
def make_adapter(tmp_path: Path, base: Path) -> MakeAdapter:
    """A function that writes a PEFT folder; its options are LoraConfig's."""

    def make(folder: Path | None = None, *, on: Path = base, **options: Any) -> Path:
        return save_adapter(on, folder or tmp_path / "adapter", **options)

    return make


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """29 rows of the dataset that the adapter was trained on."""
    path = tmp_path / "rows.jsonl"
    rows = [{"line": n, "text": f"Row {n} tells how a job is cancelled. " * 5} for n in range(1, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_request(tmp_path: Path, base: Path) -> Callable[..., ExportRequest]:
    def make(adapter: Path, *, folder: str = "export", **spec: Any) -> ExportRequest:
        attempt = tmp_path / folder / "attempt"
        attempt.mkdir(parents=True)
        return ExportRequest(
            spec=export_spec_adapter.validate_python(spec),
            adapter_id="ad_0000000000000000",
            adapter_name="helper",
            adapter_folder=adapter,
            base_model=base.name,
            quantization=QuantizationSpec(),
            models_folder=base.parent,
            folder=attempt,
            merged=tmp_path / folder / "merged",
        )

    return make


@pytest.fixture
def submit(database: Database, store: ArtifactStore, base: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that submits an export of a real adapter and returns the export's id."""
    store.put_folder("adapters/ad_0000000000000000", save_adapter(base, tmp_path / "made"))
    with database.transaction() as session:
        quantization = QuantizationSpec().model_dump(mode="json")
        adapter = make_adapter_row(session, base_model=NAME, quantization=quantization)

    def submit_export(*, format: str = "merged", **spec: Any) -> str:
        requested = export_spec_adapter.validate_python({"format": format, **spec})
        with database.transaction() as session:
            return export_records.submit(session, adapter, requested, max_waiting=10).id

    return submit_export


def write_gguf_of(model: Path, path: Path, type: GgufType = GgufType.F16) -> Path:
    """Write a model's weights as a GGUF file."""
    write_gguf(
        SafetensorsCheckpoint(model),
        path,
        layout=GgufLayout.of(read_shape(model).config),
        tokenizer=description.load_tokenizer(model),
        title="tiny",
        type=type,
    )
    return path


def succeeded(ended: Exported | ExportFailed) -> Exported:
    assert isinstance(ended, Exported), ended
    return ended


def failed(ended: Exported | ExportFailed) -> ExportFailed:
    assert isinstance(ended, ExportFailed), ended
    return ended


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """Save an adapter whose trained parameters are random and large enough to change the logits."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    with warnings.catch_warnings():
        # PEFT warns where one of two tied embeddings is trained; the tests cover that case.
        warnings.simplefilter("ignore", UserWarning)
        adapted = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            spread = 0.02 if "magnitude" in name or "modules_to_save" in name else 0.1
            parameter.data += spread * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    description.load_tokenizer(base).save_pretrained(folder)
    return folder
