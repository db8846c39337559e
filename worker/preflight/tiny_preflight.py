"""A preflight of a tiny model.

The libraries import many of their modules where they are first used. A whole preflight imports them all, so
that the first preflight of a user does not wait for them.
"""

import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.core.datasets.rows import Conversation, Message, write_row
from app.core.engine.preflight import DatasetRef, PreflightRequest
from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from worker.models.device import Device, find_device
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import run_preflight

_MODEL, _ROWS = "model", "rows"
_WORDS = ("[end]", "[pad]", "user", "assistant", "one", "two")
_TEMPLATE = "{% for message in messages %}{{ message.role + ' ' + message.content + ' [end] ' }}{% endfor %}"
# Quantized and packed: most of what a preflight can do.
_SPEC = {"base_model": _MODEL, "dataset": "ds_tiny", "lora": {"r": 1}, "training": {"packing": True}}


def run_tiny_preflight(device: dict[str, Any], path: TrainingPath) -> None:
    """Run a preflight for this device (`{}`: the one that is found here) and forget its report."""
    found = Device.model_validate(device) if device else find_device()
    with tempfile.TemporaryDirectory(prefix="tiny-preflight-") as name:
        folder = Path(name)
        _write_model(folder / _MODEL)
        environment = PreflightEnvironment(
            models_folder=folder,
            artifacts_url=str(folder),
            cache_folder=folder / "cache",
            device=found,
            free_bytes=found.memory_bytes,
            is_busy=False,
            path=path,
        )
        run_preflight(
            PreflightRequest(spec=JobSpec.model_validate(_SPEC), dataset=_write_rows(folder / _ROWS)),
            environment,
        )


def _write_model(folder: Path) -> None:
    """A Llama of two narrow layers, with a tokenizer of a few words."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_WORDS)}, "[pad]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[end]", pad_token="[pad]")
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _write_rows(path: Path) -> DatasetRef:
    row = Conversation((Message("user", "one"), Message("assistant", "two")))
    lines = [write_row(number, row) for number in (1, 2)]
    path.write_bytes(b"".join(lines))
    return DatasetRef(artifact=path.name, rows=len(lines), size_bytes=path.stat().st_size)
