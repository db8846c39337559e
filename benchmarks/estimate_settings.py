"""Models with random weights and the settings that benchmarks/estimate.py measures on them."""

import dataclasses
import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path("/dev/shm/tunesmith-benchmark")
STEPS = 3
PROCESSES = 3
PADDED_SHARE = 0.5  # ragged rows are between so much of the length and all of it
SHORT_ROW = 166  # the mean row of TRAINING.md's data, for packing

SEVEN_B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
GROUPED_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
MODELS = {"llama-7b": SEVEN_B, "llama-1b-grouped": GROUPED_1B}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the table."""

    name: str
    fitted: bool  # whether the estimate's constants were fitted to it
    batch: int
    length: int
    rows: str  # equal, ragged or packed
    checkpointing: bool
    r: int = 64
    targets: str = "q,v"
    dropout: float = 0.1
    optim: str = "paged_adamw_32bit"
    accumulation: int = 1
    model: str = "llama-7b"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantization: dict[str, Any] = dataclasses.field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """The job."""
        targets = self.targets if self.targets == "all-linear" else ["q_proj", "v_proj"]
        return {
            "base_model": self.model,
            "dataset": "ds_benchmark",
            "lora": {"r": self.r, "dropout": self.dropout, "target_modules": targets},
            "quantization": self.quantization,
            "training": {
                "per_device_train_batch_size": self.batch,
                "gradient_accumulation_steps": self.accumulation,
                "gradient_checkpointing": self.checkpointing,
                "optim": self.optim,
                "max_steps": STEPS,
                "max_seq_length": self.length,
                "packing": self.rows == "packed",
                "logging_steps": 1,
                "save_steps": 1000,
                **self.training,
            },
        }


RECIPE_FP16 = {"fp16": True, "bf16": False}
SETTINGS = [
    Setting("recipe", True, 4, 512, "ragged", False),
    Setting("recipe, checkpointed", True, 4, 512, "ragged", True),
    Setting(
        "one long row",
        True,
        1,
        2048,
        "equal",
        False,
        r=8,
        targets="all-linear",
        dropout=0,
        optim="adamw_torch",
    ),
    Setting("all linear", True, 2, 1024, "ragged", False, targets="all-linear", optim="adamw_torch"),
    Setting(
        "all linear, checkpointed", True, 2, 1024, "ragged", True, targets="all-linear", optim="adamw_torch"
    ),
    Setting("packed", True, 4, 2048, "packed", False, r=8),
    Setting("packed, checkpointed", True, 4, 2048, "packed", True, r=8),
    Setting("fp16", True, 4, 512, "ragged", False, training=RECIPE_FP16),
    Setting("packed, all linear", False, 4, 1024, "packed", False, r=8, targets="all-linear", dropout=0.05),
    Setting("one long row, checkpointed", False, 1, 2048, "equal", True),
    Setting("packed, all linear, checkpointed", False, 4, 2048, "packed", True, targets="all-linear"),
    Setting("accumulating", False, 2, 512, "ragged", False, r=8, optim="adamw_torch_fused", accumulation=2),
    Setting(
        "fp16 over bfloat16",
        False,
        4,
        512,
        "ragged",
        False,
        training=RECIPE_FP16,
        quantization={"bnb_4bit_compute_dtype": "bfloat16"},
    ),
    Setting(
        "unquantized",
        False,
        2,
        1024,
        "ragged",
        False,
        r=16,
        targets="all-linear",
        quantization={"load_in_4bit": False},
    ),
    Setting(
        "small card",
        False,
        1,
        512,
        "equal",
        True,
        optim="paged_adamw_8bit",
        quantization={"bnb_4bit_use_double_quant": True},
    ),
    Setting("small card, 2,048 tokens", False, 1, 2048, "equal", True, r=16, targets="all-linear"),
    Setting(
        "grouped heads", False, 4, 1024, "ragged", False, r=16, targets="all-linear", model="llama-1b-grouped"
    ),
    Setting(
        "grouped heads, checkpointed",
        False,
        4,
        1024,
        "ragged",
        True,
        r=16,
        targets="all-linear",
        model="llama-1b-grouped",
    ),
]


def describe_machine(module: str) -> dict[str, Any]:
    """What results are to be read with."""
    import torch

    names = ["torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate"]
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {name: importlib.metadata.version(name) for name in names},
        "python": sys.version.split()[0],
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "at": time.strftime("%Y-%m-%d"),
    }


def build(name: str, parent: Path = FOLDER, shape: dict[str, Any] | None = None) -> None:
    """The checkpoint and its tokenizer, unless they are there; of a shape of MODELS unless one is given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = parent / "models" / name
    if folder.is_dir():
        return
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**(shape or MODELS[name])), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    _make_tokenizer().save_pretrained(folder)


def _make_tokenizer() -> Any:
    """Bytes as tokens: any text can be read, and no word list is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    words = {text: place for place, text in enumerate(special + pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
