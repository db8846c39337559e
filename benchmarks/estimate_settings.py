"""Models with random weights and the settings that benchmarks/estimate.py measures on them."""

import dataclasses
import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any, Literal

FOLDER = Path("/dev/shm/tunesmith-benchmark")
STEPS = 3
PROCESSES = 4  # at a time, where the device has the memory
PADDED_SHARE = 0.5  # ragged rows are between so much of the length and all of it
SHORT_ROW = 166  # the mean row of the reference recipe's data, for packing

SEVEN_B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
SEVENTY_B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
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
    path: Literal["auto", "plain"] = "auto"
    steps: int = STEPS
    gigabytes: int = 20  # reserved for it on a device on which others are measured meanwhile
    card_gibibytes: int | None = None  # of a smaller device than the one measured on
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
                "max_steps": self.steps,
                "max_seq_length": self.length,
                "packing": self.rows == "packed",
                "logging_steps": 1,
                "save_steps": 1000,
                **self.training,
            },
        }


_FP16 = {"fp16": True, "bf16": False}
_ALL: dict[str, Any] = {"targets": "all-linear"}
_DEFAULTS: dict[str, Any] = {"r": 16, "targets": "all-linear", "dropout": 0.0, "optim": "adamw_torch_fused"}
_SMALL: dict[str, Any] = {
    "optim": "paged_adamw_8bit",
    "quantization": {"bnb_4bit_use_double_quant": True},
    "gigabytes": 12,
}
_PLAIN: dict[str, Any] = {"path": "plain"}
_ONE_ROW: dict[str, Any] = {"r": 8, "targets": "all-linear", "dropout": 0, "optim": "adamw_torch"}
_GROUPED: dict[str, Any] = {"r": 16, "targets": "all-linear", "model": "llama-1b-grouped", "gigabytes": 16}

SETTINGS = [
    Setting("recipe", False, 4, 512, "ragged", False),
    Setting("recipe, checkpointed", False, 4, 512, "ragged", True, gigabytes=12),
    Setting("one long row", False, 1, 2048, "equal", False, **_ONE_ROW),
    Setting("all linear", False, 2, 1024, "ragged", False, optim="adamw_torch", gigabytes=26, **_ALL),
    Setting("all linear, checkpointed", False, 2, 1024, "ragged", True, optim="adamw_torch", **_ALL),
    Setting("packed", False, 4, 2048, "packed", False, r=8, gigabytes=50),
    Setting("packed, checkpointed", False, 4, 2048, "packed", True, r=8, gigabytes=14),
    Setting("fp16", False, 4, 512, "ragged", False, training=_FP16),
    Setting("packed, all linear", False, 4, 1024, "packed", False, r=8, dropout=0.05, gigabytes=38, **_ALL),
    Setting("one long row, checkpointed", False, 1, 2048, "equal", True, gigabytes=12),
    Setting("packed, all linear, checkpointed", False, 4, 2048, "packed", True, gigabytes=14, **_ALL),
    Setting("accumulating", False, 2, 512, "ragged", False, r=8, optim="adamw_torch_fused", accumulation=2),
    Setting(
        "fp16 over bfloat16",
        False,
        4,
        512,
        "ragged",
        False,
        gigabytes=24,
        training=_FP16,
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
        gigabytes=36,
        quantization={"load_in_4bit": False},
        **_ALL,
    ),
    Setting("small card", False, 1, 512, "equal", True, **_SMALL),
    Setting("small card, 2,048 tokens", False, 1, 2048, "equal", True, r=16, gigabytes=12, **_ALL),
    Setting("grouped heads", False, 4, 1024, "ragged", False, **_GROUPED),
    Setting("grouped heads, checkpointed", False, 4, 1024, "ragged", True, **_GROUPED),
    # Jobs for which the optimizations are made.
    Setting("defaults", False, 4, 1024, "ragged", False, gigabytes=32, **_DEFAULTS),
    Setting("defaults, packed", False, 4, 2048, "packed", False, gigabytes=46, **_DEFAULTS),
    Setting("defaults, packed, checkpointed", False, 4, 2048, "packed", True, gigabytes=14, **_DEFAULTS),
    Setting(
        "defaults, packed, dropout",
        False,
        4,
        2048,
        "packed",
        False,
        gigabytes=56,
        **{**_DEFAULTS, "dropout": 0.1},
    ),
    Setting("8,192 tokens, checkpointed", False, 1, 8192, "packed", True, **{**_DEFAULTS, **_SMALL}),
    Setting("recipe, long rows", False, 4, 1500, "ragged", False, gigabytes=30),
    # Enough steps that most batch sizes come twice and have CUDA graphs.
    Setting("recipe, recorded", False, 4, 512, "ragged", False, steps=30, gigabytes=28),
    Setting("recipe, long rows, recorded", False, 4, 1200, "ragged", False, steps=24, gigabytes=46),
    # At 87% of the card by the estimate: it must train without a pass that runs out of memory.
    Setting(
        "recipe, long rows, 24 GiB",
        False,
        4,
        1200,
        "ragged",
        False,
        steps=24,
        gigabytes=27,
        card_gibibytes=24,
    ),
    Setting("defaults, recorded", False, 4, 512, "ragged", False, steps=24, gigabytes=36, **_DEFAULTS),
    Setting("grouped heads, packed", False, 4, 2048, "packed", False, **{**_GROUPED, "dropout": 0.0}),
    # As PEFT, TRL and transformers compute it.
    Setting("recipe, plain", True, 4, 512, "ragged", False, **_PLAIN),
    Setting("one long row, plain", True, 1, 2048, "equal", False, **_ONE_ROW, **_PLAIN),
    Setting(
        "all linear, plain",
        True,
        2,
        1024,
        "ragged",
        False,
        optim="adamw_torch",
        gigabytes=27,
        **_ALL,
        **_PLAIN,
    ),
    Setting("packed, checkpointed, plain", True, 4, 2048, "packed", True, r=8, gigabytes=14, **_PLAIN),
    Setting("defaults, packed, plain", False, 4, 2048, "packed", False, gigabytes=58, **_DEFAULTS, **_PLAIN),
    Setting("grouped heads, plain", False, 4, 1024, "ragged", False, **_GROUPED, **_PLAIN),
]


def describe_machine(module: str) -> dict[str, Any]:
    """Device, versions and command of a measurement."""
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
    """Write a checkpoint and its tokenizer unless they exist; of a shape of MODELS unless one is given.

    A shape is a config's fields; its `model_type` is "llama" where it has none.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = parent / "models" / name
    if folder.is_dir():
        return
    fields = {"model_type": "llama", **(shape or MODELS[name])}
    config = type(AutoConfig.for_model(fields.pop("model_type")))(**fields)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    make_tokenizer().save_pretrained(folder)


def make_tokenizer() -> Any:
    """A tokenizer with bytes as tokens, for any text, without a vocabulary file."""
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
