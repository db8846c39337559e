"""Which optimizations apply to a spec on a device: a table."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from benchmarks.families.configs import find_families
from benchmarks.families.tiny_model import make_config, make_tokenizer
from tests.factories import make_spec
from tests.worker.llama_family import LLAMA
from worker.models.device import Device
from worker.planning.optimizations import ModelFamily, OptimizationPlan, describe_family, plan_optimizations

CPU = Device(kind="cpu", name="CPU", memory_bytes=1, supports_bf16=False, torch_version="2.13.0")
HOPPER = CPU.model_copy(update={"kind": "cuda", "name": "H100", "supports_bf16": True})
TURING = CPU.model_copy(update={"kind": "cuda", "name": "T4"})


def make_job_spec(**fields: Any) -> JobSpec:
    training = {"gradient_checkpointing": False, **fields.pop("training", {})}
    return make_spec(training=training, **fields)


def plan_for(spec: dict[str, Any], device: Device, *, family: ModelFamily = LLAMA) -> OptimizationPlan:
    return plan_optimizations(make_job_spec(**spec), device, family, TrainingPath.AUTO)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (CPU, (torch.float32, ("row by row",))),
        (HOPPER, (torch.bfloat16, ("Triton", "PyTorch varlen_attn"))),
        (TURING, (torch.float16, ())),
    ],
    ids=["cpu", "hopper", "turing"],
)
def test_the_recipe_on_each_device(device: Device, expected: tuple[torch.dtype, tuple[str, ...]]) -> None:
    plan = plan_for({}, device)

    assert (plan.fused_lora_dtype, plan.varlen_kernels) == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"lora": {"use_dora": True}}, "DoRA"),
        ({"lora": {"bias": "lora_only"}}, "lora.bias lora_only"),
        ({"quantization": {"bnb_4bit_compute_dtype": "float16"}}, "compute in different types"),
        ({"training": {"bf16": False, "fp16": False}}, "compute in different types"),
    ],
    ids=["dora", "bias", "types", "no mixed precision"],
)
def test_linears_that_stay_pefts_own(spec: dict[str, Any], reason: str) -> None:
    plan = plan_for(spec, HOPPER)

    assert plan.fused_lora_dtype is None
    assert any(line.startswith("LoRA in one autograd function") and reason in line for line in plan.left_out)


@pytest.mark.parametrize(
    ("training", "changes", "reason"),
    [
        ({"neftune_noise_alpha": 5.0}, {}, "NEFTune"),
        ({}, {"takes_attention": False}, "does not let its attention be replaced"),
        ({}, {"changes_attention": True}, "attention of its own kind"),
        ({}, {"drops_attention": True}, "no dropout of attention weights"),
        ({}, {"head_width": 512}, "heads up to 256"),
    ],
    ids=["neftune", "own attention", "odd attention", "dropped attention", "wide heads"],
)
def test_batches_that_stay_padded(training: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    family = ModelFamily(**{**vars(LLAMA), **changes})

    plan = plan_for({"training": training}, HOPPER, family=family)

    assert not plan.varlen_kernels
    assert any(line.startswith("padding-free batches") and reason in line for line in plan.left_out)


@pytest.mark.parametrize(
    ("device", "packing", "is_padding_free"),
    [(CPU, False, False), (CPU, True, True), (HOPPER, False, True)],
    ids=["one row", "packed", "for graphs"],
)
def test_one_sequence_in_a_batch(device: Device, packing: bool, is_padding_free: bool) -> None:
    plan = plan_for({"training": {"per_device_train_batch_size": 1, "packing": packing}}, device)

    assert bool(plan.varlen_kernels) == is_padding_free


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({}, None),
        ({"gradient_checkpointing": True}, "gradient checkpointing is on"),
        ({"neftune_noise_alpha": 5.0}, "batches are padded"),
        ({"packing": True, "max_seq_length": 2048}, None),
    ],
)
def test_graphs_need_batches_without_padding_and_no_checkpoints(
    training: dict[str, Any], reason: str | None
) -> None:
    plan = plan_for({"training": training}, HOPPER)

    assert plan.cuda_graphs == (reason is None)
    assert reason is None or any(reason in line for line in plan.left_out)


@pytest.mark.parametrize("in_4_bits", [True, False])
def test_a_gpu_dequantizes_in_triton_and_draws_other_masks_over_unquantized_weights(in_4_bits: bool) -> None:
    spec = {"quantization": {"load_in_4bit": in_4_bits}}

    assert plan_for(spec, HOPPER).triton_dequantize == in_4_bits
    assert plan_for(spec, HOPPER).draws_peft_masks == in_4_bits
    assert not plan_for(spec, CPU).triton_dequantize


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"name": "gpt2"}, "gpt2 has other layers"),
        ({"drops_others": True}, "a dropout of its own"),
        ({"takes_attention": False}, "does not let its attention be replaced"),
    ],
    ids=["llama", "gpt2", "dropout", "attention"],
)
@pytest.mark.parametrize("device", [CPU, HOPPER], ids=["cpu", "gpu"])
def test_explicit_layers_are_for_families_like_llama(
    device: Device, changes: dict[str, Any], reason: str | None
) -> None:
    plan = plan_for({}, device, family=ModelFamily(**{**vars(LLAMA), **changes}))

    assert plan.explicit_decoder == (reason is None)
    assert plan.triton_operations == (reason is None and device.is_cuda)
    found = [line for line in plan.left_out if line.startswith("explicit decoder layers")]
    assert reason is None or reason in found[0]


@pytest.mark.parametrize("device", [CPU, HOPPER], ids=["cpu", "gpu"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_dequantized_weights_are_cached_on_a_gpu_that_is_not_shared(device: Device, is_alone: bool) -> None:
    plan = plan_optimizations(make_job_spec(), device, LLAMA, TrainingPath.AUTO, is_alone=is_alone)

    assert plan.dequantized_cache == (is_alone and device is HOPPER)
    assert plan_optimizations(make_job_spec(), CPU, LLAMA, TrainingPath.AUTO) == plan_for({}, CPU)


def test_plain_is_plain() -> None:
    assert plan_optimizations(make_job_spec(), HOPPER, LLAMA, TrainingPath.PLAIN) == OptimizationPlan(
        left_out=("all (TUNESMITH_TRAINING_PATH is plain)",)
    )


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_bigcode", "seed_oss", "llama"])
def test_dropout_of_attention_is_known_by_each_familys_name_of_it(model_type: str) -> None:
    [family, *_others] = find_families([model_type])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(family, make_tokenizer()))

    assert describe_family(model).drops_attention is (model_type != "llama")
