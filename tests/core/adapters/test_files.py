"""Reading the settings and weights of adapter files."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.core.adapters.files import Description, describe
from app.core.errors.adapters import AdapterInvalid
from app.core.specs.job import LoraSpec, QuantizationSpec
from tests.adapter_archives import MODULE, peft_files, safetensors


def described(folder: Path, config: dict[str, Any] | None = None, **files: bytes) -> Description:
    weights = files.pop("weights", safetensors())
    for name, content in (peft_files(config) | {"adapter_model.safetensors": weights}).items():
        (folder / name).write_bytes(content)
    for name, content in files.items():
        (folder / f"{name}.json").write_bytes(content)
    return describe(folder)


def refusal(folder: Path, config: dict[str, Any] | None = None, **files: bytes) -> str:
    with pytest.raises(AdapterInvalid) as refused:
        described(folder, config, **files)
    assert refused.value.hint
    return refused.value.message


def test_a_plain_adapter_says_its_base_model_and_its_settings(tmp_path: Path) -> None:
    lora = LoraSpec(r=2, alpha=4, dropout=0, target_modules=["q_proj", "v_proj"])
    assert described(tmp_path) == Description("owner/model", lora, None)


@pytest.mark.parametrize(
    "special", [{"rank_pattern": {"q_proj": 4}}, {"target_modules": ".*q_proj"}, {"layers_to_transform": [0]}]
)
def test_an_adapter_with_settings_that_no_job_has_gives_no_lora_spec(
    tmp_path: Path, special: dict[str, Any]
) -> None:
    assert described(tmp_path, special).lora is None


def test_the_record_that_tunesmith_wrote_gives_the_quantization(tmp_path: Path) -> None:
    quantization = QuantizationSpec(bnb_4bit_use_double_quant=True)
    record = json.dumps({"spec": {"quantization": quantization.model_dump()}}).encode()
    assert described(tmp_path, tunesmith=record).quantization == quantization


@pytest.mark.parametrize("record", [b"", b"[]", b'{"spec": 3}', b"[" * 100_000])
def test_an_invalid_record_is_ignored(tmp_path: Path, record: bytes) -> None:
    assert described(tmp_path, tunesmith=record).quantization is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: Input should be 'LORA'"),
        ({"r": 0}, "r: Input should be greater than or equal to 1"),
        ({"r": "8"}, "r: Input should be a valid integer"),
        ({"task_type": "SEQ_CLS"}, "task_type: Input should be 'CAUSAL_LM'"),
        ({"alpha_pattern": {"(.+)+x": 4}}, "'(.+)+x' is no name of a layer"),
        ({"rank_pattern": {"layers.*.q_proj": 4}}, "'layers.*.q_proj' is no name of a layer"),
        ({"rank_pattern": {"q_proj": 1025}}, "rank_pattern.q_proj: Input should be less than or equal to"),
        ({"alpha_pattern": {"q_proj": "4x"}}, "alpha_pattern.q_proj: Input should be a valid number"),
        ({"modules_to_save": ["(.+)+x"]}, "modules_to_save.0: String should match pattern"),
    ],
)
def test_another_kind_of_adapter_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, config)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"", "is no safetensors file"),
        (b"\xff" * 100, "is no safetensors file"),
        (safetensors()[:-1], "are not all there"),
        (safetensors({"model.weight": [1.0]}), "holds no weights of a LoRA adapter"),
        (safetensors({f"{MODULE}.lora_A.weight": [1.0], f"{MODULE}.lora_B.weight": [0.0]}), "is zero"),
        (safetensors(x={"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}), "is of type I64"),
        (safetensors(x={"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}), "not as many as its shape"),
        (safetensors(x={"dtype": "F32", "shape": [1], "data_offsets": [800, 804]}), "are not all there"),
        (safetensors(x={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}), "is no safetensors file"),
    ],
)
def test_weights_that_are_incomplete_or_zero_are_refused(
    tmp_path: Path, weights: bytes, message: str
) -> None:
    assert message in refusal(tmp_path, weights=weights)
