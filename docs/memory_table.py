"""Write the README's table of GPU memory by model size: `python -m docs.memory_table`.

The figures are those of the memory estimate that every job is planned with; no weights are loaded.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from worker.models.device import Device
from worker.models.files.description import build_empty
from worker.planning import batch_size

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- python -m docs.memory_table -->\n", "<!-- end -->"
GPU = Device(
    kind="cuda", name="any from Ampere up", memory_bytes=80 << 30, supports_bf16=True, torch_version=""
)
ROW_TOKENS = 512
CARDS_GIB = (8, 12, 16, 24, 32, 40, 48, 80, 141)


@dataclass(frozen=True)
class Model:
    """A base model as its config.json describes it."""

    name: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    key_heads: int
    vocabulary: int
    is_tied: bool = False

    def config(self) -> dict[str, Any]:
        """Its config.json, as far as memory depends on it."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": 128 if self.hidden >= 3072 else 64,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.is_tied,
        }


MODELS = (
    Model("1B (Llama 3.2)", 16, 2048, 8192, 32, 8, 128256, is_tied=True),
    Model("3B (Llama 3.2)", 28, 3072, 8192, 24, 8, 128256, is_tied=True),
    Model("7B (Llama 2)", 32, 4096, 11008, 32, 32, 32000),
    Model("8B (Llama 3.1)", 32, 4096, 14336, 32, 8, 128256),
    Model("13B (Llama 2)", 40, 5120, 13824, 40, 40, 32000),
    Model("32B (Qwen 2.5)", 64, 5120, 27648, 40, 8, 152064),
    Model("70B (Llama 3.1)", 80, 8192, 28672, 64, 8, 128256),
)
# The defaults of a job, but for the adapter on every linear layer, as most jobs have it.
USUAL = {
    "lora": {"r": 16, "target_modules": "all-linear"},
    "training": {"per_device_train_batch_size": 4, "gradient_checkpointing": False},
}
SMALLEST = {
    "lora": {"r": 16, "target_modules": "all-linear", "dropout": 0},
    "quantization": {"bnb_4bit_use_double_quant": True},
    "training": {
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": True,
        "optim": "paged_adamw_8bit",
    },
}


def needed_gib(model: Model, settings: dict[str, Any]) -> float:
    """GPU memory in GiB that a job of rows of 512 tokens needs, with the share that is left free."""
    spec = JobSpec.model_validate({"base_model": "any", "dataset": "any", **settings})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model.config()))
        job = batch_size.PlannedJob.read(spec, GPU, build_empty(Path(folder)), TrainingPath.AUTO)
    rows = batch_size.RowLengths(ROW_TOKENS, ROW_TOKENS, 1000, ROW_TOKENS)
    memory = batch_size.choose_batch_size(job, rows, free_bytes=GPU.memory_bytes).memory
    return memory.total / batch_size.USABLE_SHARE / (1 << 30)


def card(gib: float) -> str:
    """The smallest usual GPU with so much memory."""
    return next((f"{size} GB" for size in CARDS_GIB if size >= gib + 0.5), "more than 141 GB")


def table() -> str:
    """The table in Markdown."""
    lines = ["| Base model | Smallest job | Usual job |", "| --- | --- | --- |"]
    for model in MODELS:
        cells = [needed_gib(model, settings) for settings in (SMALLEST, USUAL)]
        lines.append(f"| {model.name} | " + " | ".join(f"{gib:.1f} GiB: {card(gib)}" for gib in cells) + " |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with the table between its two comments."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
