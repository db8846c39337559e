"""Every field of a spec arrives in the settings of TRL, PEFT and bitsandbytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.core.errors import InvalidRequest
from app.core.specs.job import LoraSpec, QuantizationSpec, TrainingSpec
from tests.factories import make_spec
from worker.models.base_model import quantization_config
from worker.models.device import Device
from worker.models.lora import lora_config
from worker.planning.automatic_settings import check_modules_to_save, max_seq_length, mixed_precision
from worker.training.config import CHECKPOINTING, trainer_config

CPU = Device(kind="cpu", name="CPU", memory_bytes=1, supports_bf16=False, torch_version="2.11.0")
AMPERE = Device(kind="cuda", name="A100", memory_bytes=1, supports_bf16=True, torch_version="2.11.0")
TURING = Device(kind="cuda", name="T4", memory_bytes=1, supports_bf16=False, torch_version="2.11.0")

TRAINING_CASES: list[tuple[dict[str, Any], str, Any]] = [
    ({"num_train_epochs": 2.5}, "num_train_epochs", 2.5),
    ({"max_steps": 7}, "max_steps", 7),
    ({"per_device_train_batch_size": 3}, "per_device_train_batch_size", 3),
    ({"per_device_eval_batch_size": 5}, "per_device_eval_batch_size", 5),
    ({"gradient_accumulation_steps": 6}, "gradient_accumulation_steps", 6),
    ({"gradient_checkpointing": True}, CHECKPOINTING, True),
    ({"gradient_checkpointing": False}, CHECKPOINTING, False),
    ({"gradient_checkpointing": True}, f"{CHECKPOINTING}_kwargs", {"use_reentrant": False}),
    ({}, "optim", "paged_adamw_32bit"),
    ({"optim": "adamw_torch_fused"}, "optim", "adamw_torch_fused"),
    ({"learning_rate": 3e-5}, "learning_rate", 3e-5),
    ({"weight_decay": 0.02}, "weight_decay", 0.02),
    ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type", "cosine"),
    ({"warmup_ratio": 0.25}, "warmup_steps", 0.25),
    ({"max_grad_norm": 0.7}, "max_grad_norm", 0.7),
    ({"bf16": True}, "bf16", True),
    ({"bf16": "auto"}, "bf16", False),
    ({"fp16": "auto"}, "fp16", False),
    ({"group_by_length": True}, "train_sampling_strategy", "group_by_length"),
    ({"group_by_length": False}, "train_sampling_strategy", "random"),
    ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha", 5.0),
    ({"logging_steps": 9}, "logging_steps", 9),
    ({"save_steps": 11}, "save_steps", 11),
    ({"eval_steps": 4, "validation_split": 0.1}, "eval_steps", 4),
    ({"eval_steps": 4, "validation_split": 0.1}, "eval_strategy", "steps"),
    ({"validation_split": 0.1}, "eval_strategy", "no"),
    ({"seed": 7}, "seed", 7),
    ({"seed": 7}, "data_seed", 7),
    # Rows come cut, packed and masked; the trainer must not do any of it again.
    ({"packing": True}, "packing", False),
    ({"max_seq_length": 64}, "max_length", None),
    ({"assistant_only_loss": True}, "assistant_only_loss", False),
    ({}, "dataset_kwargs", {"skip_prepare_dataset": True}),
    ({}, "logging_nan_inf_filter", False),
]
# These apply to the rows or the callbacks, whose tests are in templates, samples and test_run.py.
ELSEWHERE = {"early_stopping_patience", "keep_checkpoints", "sample_prompts", "sample_max_new_tokens"}


@pytest.mark.parametrize(("fields", "setting", "value"), TRAINING_CASES)
def test_training_field_arrives(fields: dict[str, Any], setting: str, value: Any, tmp_path: Path) -> None:
    training = TrainingSpec.model_validate({"gradient_checkpointing": False, **fields})

    settings = trainer_config(training, CPU, tmp_path)

    assert getattr(settings, setting) == value


def test_every_training_field_has_a_case() -> None:
    covered = {name for fields, _setting, _value in TRAINING_CASES for name in fields}

    assert set(TrainingSpec.model_fields) == covered | ELSEWHERE


@pytest.mark.parametrize(
    ("fields", "setting", "value"),
    [
        ({"r": 8}, "r", 8),
        ({"alpha": 32}, "lora_alpha", 32),
        ({"alpha": 0.5}, "lora_alpha", 0.5),
        ({"dropout": 0.3}, "lora_dropout", 0.3),
        ({"bias": "lora_only"}, "bias", "lora_only"),
        ({"target_modules": ["q_proj"]}, "target_modules", {"q_proj"}),
        ({"target_modules": "all-linear"}, "target_modules", "all-linear"),
        ({}, "target_modules", None),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", ["lm_head"]),
        ({}, "modules_to_save", None),
        ({"use_rslora": True}, "use_rslora", True),
        ({"use_dora": True}, "use_dora", True),
        ({}, "use_dora", False),
        ({}, "task_type", "CAUSAL_LM"),
    ],
)
def test_lora_field_arrives(fields: dict[str, Any], setting: str, value: Any) -> None:
    assert getattr(lora_config(LoraSpec.model_validate(fields)), setting) == value


@pytest.mark.parametrize(
    ("fields", "setting", "value"),
    [
        ({}, "load_in_4bit", True),
        ({"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type", "fp4"),
        ({"bnb_4bit_use_double_quant": True}, "bnb_4bit_use_double_quant", True),
        ({"bnb_4bit_compute_dtype": "float16"}, "bnb_4bit_compute_dtype", torch.float16),
        ({}, "bnb_4bit_compute_dtype", torch.float32),
    ],
)
def test_quantization_field_arrives(fields: dict[str, Any], setting: str, value: Any) -> None:
    config = quantization_config(QuantizationSpec.model_validate(fields), CPU)

    assert getattr(config, setting) == value


@pytest.mark.parametrize(
    ("fields", "device", "expected"),
    [
        ({}, CPU, (False, False)),
        ({}, AMPERE, (False, True)),
        ({}, TURING, (True, False)),
        ({"bf16": False}, AMPERE, (True, False)),
        ({"fp16": True}, AMPERE, (True, False)),
        ({"fp16": False}, TURING, (False, False)),
        ({"fp16": False, "bf16": False}, AMPERE, (False, False)),
        ({"bf16": True}, CPU, (False, True)),
    ],
)
def test_mixed_precision_follows_spec_and_device(
    fields: dict[str, Any], device: Device, expected: tuple[bool, bool]
) -> None:
    assert mixed_precision(TrainingSpec.model_validate(fields), device) == expected


@pytest.mark.parametrize(("fields", "device"), [({"fp16": True}, CPU), ({"bf16": True}, TURING)])
def test_precision_that_the_device_lacks_is_refused(fields: dict[str, Any], device: Device) -> None:
    with pytest.raises(InvalidRequest):
        mixed_precision(TrainingSpec.model_validate(fields), device)


@pytest.mark.parametrize(
    ("asked", "context", "expected"),
    [(None, 8192, 2048), (None, 512, 512), (4096, 8192, 4096), (4096, 1024, 1024), (None, None, 2048)],
)
def test_rows_are_never_longer_than_the_context(
    asked: int | None, context: int | None, expected: int
) -> None:
    assert max_seq_length(TrainingSpec(max_seq_length=asked), context) == expected


@pytest.mark.parametrize(
    ("spec", "device", "is_refused"),
    [
        ({}, AMPERE, False),
        ({"training": {"bf16": False, "fp16": False}}, AMPERE, True),
        ({"training": {"bf16": False}}, AMPERE, False),
        ({"quantization": {"bnb_4bit_compute_dtype": "bfloat16"}}, CPU, True),
        ({}, CPU, False),
    ],
)
def test_modules_trained_whole_need_mixed_precision_with_16_bit_weights(
    spec: dict[str, Any], device: Device, is_refused: bool
) -> None:
    asked = make_spec(lora={"modules_to_save": ["lm_head"]}, **spec)

    if not is_refused:
        return check_modules_to_save(asked, device)
    with pytest.raises(InvalidRequest, match="mixed precision"):
        check_modules_to_save(asked, device)


def test_every_lora_field_has_a_case() -> None:
    marks = test_lora_field_arrives.pytestmark  # type: ignore[attr-defined]
    covered = {name for fields, _setting, _value in marks[0].args[1] for name in fields}

    assert set(LoraSpec.model_fields) == covered
