"""The folder of a finished adapter: weights, tokenizer, chat template, and where it all came from."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peft import PeftModel
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from app.core.specs import JobSpec
from worker.training import adapter
from worker.training.folders import appearing

RECORD = "tunesmith.json"
_PACKAGES = ("tunesmith", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


class FinalMetrics(BaseModel):
    """How training ended. Losses are means per token; the training loss is that of the last metrics event."""

    steps: int
    epochs: float
    tokens: int
    training_seconds: float
    loss: float | None
    eval_loss: float | None
    peak_memory_bytes: int


class Record(BaseModel):
    """Where an adapter came from; written beside it."""

    job: str
    spec: JobSpec
    dataset_sha256: str
    chat_template_sha256: str
    device: str
    versions: dict[str, str]
    metrics: FinalMetrics


def write(folder: Path, model: PeftModel, tokenizer: PreTrainedTokenizerBase, record: Record) -> int:
    """Fill the folder, which appears whole; answers its bytes."""
    with appearing(folder) as staging:
        adapter.save(model, staging)
        tokenizer.save_pretrained(staging)
        (staging / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
        for path in staging.iterdir():
            # safetensors writes its file for the owner alone.
            path.chmod(0o644)
    return sum(path.stat().st_size for path in folder.iterdir())


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for the chat template that rows were rendered with."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def versions() -> dict[str, str]:
    """What this ran on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
