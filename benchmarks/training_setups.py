"""The setups that benchmarks/training.py measures, shapes of base models, rows, and requests to train."""

import dataclasses
import random
from pathlib import Path
from typing import Any, Literal

from app.core.datasets.rows import DatasetFormat
from app.core.specs.job import JobSpec
from benchmarks import estimate_settings
from benchmarks.grouped_shapes import GROUPED_SHAPES
from worker.processes.reports import TrainingRequest

# Row lengths are log-normal like those of the reference data: mean 166, 95th percentile 449.
_MEDIAN_LOG, _SPREAD_LOG = 4.793, 0.799
_MIN_ROW_TOKENS, MAX_ROW_TOKENS = 8, 2048
ROWS = 4000

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
SHAPES = {
    "llama-7b": estimate_settings.SEVEN_B,
    "llama-70b": estimate_settings.SEVENTY_B,
    "tiny": TINY,
    **GROUPED_SHAPES,
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """One line of the table. `code`: whose training loop."""

    name: str
    code: Literal["trl", "plain", "auto"] = "auto"
    r: int = 64
    dropout: float = 0.1
    all_linear: bool = False
    batch: int = 4
    length: int = 2048
    packing: bool = False
    checkpointing: bool = False
    optim: str = "paged_adamw_32bit"
    bf16: bool = True
    double_quantized: bool = False
    alone: bool = False  # no engine serves on the device meanwhile
    in_4bit: bool = True
    gpus: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    accumulation: int = 1
    logging_steps: int = 25
    steps: int = 16
    warm_up: int = 5  # steps that are not counted

    def spec(self, model: str) -> dict[str, Any]:
        """The job."""
        return {
            "base_model": model,
            "dataset": "ds_benchmark",
            "lora": {
                "r": self.r,
                "dropout": self.dropout,
                "target_modules": "all-linear" if self.all_linear else ["q_proj", "v_proj"],
            },
            "quantization": {
                "load_in_4bit": self.in_4bit,
                "bnb_4bit_use_double_quant": self.double_quantized,
            },
            "resources": {"gpus": self.gpus, "strategy": self.strategy},
            "training": {
                "per_device_train_batch_size": self.batch,
                "gradient_accumulation_steps": self.accumulation,
                "logging_steps": self.logging_steps,
                "gradient_checkpointing": self.checkpointing,
                "optim": self.optim,
                "packing": self.packing,
                "max_seq_length": self.length,
                "max_steps": self.steps,
                "save_steps": 100_000,
                **({} if self.bf16 else {"bf16": False, "fp16": True}),
            },
        }


def _packed(name: str, **options: Any) -> Setup:
    given = {"r": 16, "dropout": 0.0, "all_linear": True, "optim": "adamw_torch_fused", **options}
    return Setup(name, packing=True, **given)


_DEFAULTS: dict[str, Any] = {"r": 16, "dropout": 0.0, "all_linear": True, "optim": "adamw_torch_fused"}
SETUPS = [
    Setup("recipe, TRL", "trl"),
    Setup("recipe, plain, fp16", "plain", bf16=False),
    Setup("recipe, plain", "plain"),
    # Until most sizes of batches have come twice.
    Setup("recipe", steps=160, warm_up=110),
    Setup("recipe, alone", steps=160, warm_up=110, alone=True),
    Setup("defaults, TRL, checkpointed", "trl", checkpointing=True, **_DEFAULTS),
    Setup("defaults, TRL", "trl", **_DEFAULTS),
    _packed("packed, plain", code="plain"),
    _packed("packed"),
    _packed("packed, alone", alone=True),
    _packed("packed, paged AdamW", optim="paged_adamw_32bit"),
    _packed("packed, checkpointed, plain", code="plain", checkpointing=True),
    _packed("packed, checkpointed", checkpointing=True),
    _packed("packed, in 8 GB", checkpointing=True, double_quantized=True, optim="adamw_bnb_8bit"),
    _packed("packed, r 64", r=64),
    _packed("packed, dropout", dropout=0.1),
    _packed("one row of 2,048", batch=1, checkpointing=True, double_quantized=True, optim="paged_adamw_8bit"),
    _packed(
        "one row of 8,192",
        batch=1,
        length=8192,
        checkpointing=True,
        double_quantized=True,
        optim="paged_adamw_8bit",
    ),
]


def draw_rows(count: int, vocabulary: int, *, longest: int = MAX_ROW_TOKENS) -> list[list[int]]:
    """Rows of random tokens with lengths like those of the data."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        length = min(longest, max(_MIN_ROW_TOKENS, round(draw.lognormvariate(_MEDIAN_LOG, _SPREAD_LOG))))
        rows.append([draw.randrange(3, vocabulary) for _ in range(length)])
    return rows


def make_request(
    spec: JobSpec, *, dataset: Path, models_folder: Path, job_folder: Path, **options: Any
) -> TrainingRequest:
    """The first attempt at a job on rows of plain text; `options` are further fields of the request."""
    return TrainingRequest(
        job_id="job_benchmark",
        attempt=1,
        spec=spec,
        dataset=dataset,
        dataset_format=DatasetFormat.TEXT,
        dataset_sha256="",
        models_folder=models_folder,
        job_folder=job_folder,
        output_folder=job_folder / "adapter",
        **options,
    )
