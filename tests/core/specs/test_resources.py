"""Which jobs may divide their base model between GPUs."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.factories import make_spec

FSDP = {"gpus": 2, "strategy": "fsdp"}
UNQUANTIZED = {"load_in_4bit": False}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "bitsandbytes issue 1945.*Set quantization.load_in_4bit to false, or resources.strategy to ddp"),
        ({"quantization": UNQUANTIZED, "resources": FSDP | {"nodes": 2}}, "is for the GPUs of one host"),
        ({"quantization": UNQUANTIZED, "method": "dpo"}, "is for the method sft, not for dpo"),
        ({"quantization": UNQUANTIZED, "lora": {"bias": "all"}}, "leave out lora.bias"),
        ({"quantization": UNQUANTIZED, "lora": {"modules_to_save": ["lm_head"]}}, "lora.modules_to_save"),
        ({"quantization": UNQUANTIZED, "lora": {"use_dora": True}}, "lora.use_dora"),
    ],
)
def test_fsdp_is_refused_with_what_to_do(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=f"resources.strategy fsdp .*{message}"):
        make_spec(**{"resources": FSDP, **spec})
    resources = {"gpus": 2, **spec.get("resources", {}), "strategy": "auto"}
    assert make_spec(**{**spec, "resources": resources}).fsdp_obstacle


def test_fsdp_divides_a_base_model_in_16_bits() -> None:
    assert make_spec(resources=FSDP, quantization=UNQUANTIZED).fsdp_obstacle is None
