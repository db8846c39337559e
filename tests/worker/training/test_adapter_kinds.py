"""Adapters beyond plain LoRA: trained on a 4-bit base, loaded in plain PEFT, served on one of two paths."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, Olmo2Config, Olmo2ForCausalLM

from app.core.adapters.files import RECORD
from app.core.jobs.events import Log, Warn
from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, run_here
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.general.adapters import PeftFolder
from worker.processes.reports import Advanced, Outcome

SHORT: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-2, "save_steps": 1}
PAGED: list[dict[str, Any]] = [{"use_rslora": True}, {"target_modules": "all-linear", "use_rslora": True}]
GENERAL: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "lora.use_dora"),
    ({"modules_to_save": ["lm_head"]}, "lora.modules_to_save"),
    ({"modules_to_save": ["embed_tokens", "lm_head", "model.norm"]}, "lora.modules_to_save"),
    ({"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"]}, "lora.use_dora"),
    ({"target_modules": ["embed_tokens", "q_proj"]}, "the embedding layer"),
    ({"bias": "all"}, "lora.bias"),
]


def loads_in_peft(models_folder: Path, folder: Path) -> torch.Tensor:
    """How far the adapter moves the logits in plain PEFT, without Tunesmith's code."""
    base = AutoModelForCausalLM.from_pretrained(models_folder / NAME)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        plain = base(input_ids=tokens).logits
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        return (model(input_ids=tokens).logits - plain).abs().max()


@pytest.mark.parametrize("lora", [*PAGED, *(lora for lora, _reason in GENERAL)])
def test_it_trains_and_loads_in_plain_peft(
    make_request: MakeRequest, models_folder: Path, lora: dict[str, Any]
) -> None:
    request = make_request(training=SHORT, lora={"r": 4, **lora})

    reports = run_here(request)

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    assert loads_in_peft(models_folder, request.output_folder) > 0
    saved = load_file(request.output_folder / "adapter_model.safetensors")
    base_weights = [name for name in saved if "lora_" not in name and "bias" not in name]
    assert len(base_weights) == len(lora.get("modules_to_save", []))


@pytest.mark.parametrize("lora", PAGED)
def test_plain_lora_is_served_on_the_paged_path(make_request: MakeRequest, lora: dict[str, Any]) -> None:
    request = make_request(training=SHORT, lora={"r": 4, **lora})

    reports = run_here(request)

    assert not reports.events(Warn)
    assert not any("general path" in event.message for event in reports.events(Log))
    adapter = read_adapter("ad_0", request.output_folder)
    assert isinstance(adapter, CachedAdapter)
    assert adapter.rank == 4


@pytest.mark.parametrize(("lora", "reason"), GENERAL)
def test_the_log_says_why_an_adapter_takes_the_general_path(
    make_request: MakeRequest, lora: dict[str, Any], reason: str
) -> None:
    request = make_request(training=SHORT, lora={"r": 4, **lora})

    reports = run_here(request)

    said = next(event.message for event in reports.events(Log) if "general path" in event.message)
    assert reason in said
    assert reason in json.loads((request.output_folder / RECORD).read_text())["general_path"][0]
    assert not reports.events(Warn)
    assert isinstance(read_adapter("ad_0", request.output_folder), PeftFolder)


def test_modules_trained_whole_change(make_request: MakeRequest, models_folder: Path) -> None:
    request = make_request(training=SHORT, lora={"r": 4, "modules_to_save": ["lm_head"]})

    run_here(request)

    saved = load_file(request.output_folder / "adapter_model.safetensors")
    before = load_file(models_folder / NAME / "model.safetensors")["lm_head.weight"]
    assert (saved["base_model.model.lm_head.weight"] - before).abs().max() > 1e-4


def test_an_interrupted_job_resumes_with_its_whole_modules(make_request: MakeRequest) -> None:
    lora = {"r": 4, "dropout": 0.0, "modules_to_save": ["lm_head"], "use_dora": True}
    straight = make_request("straight", training=SHORT, lora=lora)
    broken = make_request("broken", training=SHORT, lora=lora)
    run_here(straight)
    run_here(broken, stop_when=lambda report: isinstance(report, Advanced) and report.step == 1)

    run_here(broken)

    left, right = (
        load_file(request.output_folder / "adapter_model.safetensors") for request in (straight, broken)
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("name", "words"), [("nothing", "no module 'nothing'"), ("q_proj", "'q_proj' is held in 4 bits")]
)
def test_modules_that_can_not_be_trained_whole_are_refused(
    make_request: MakeRequest, name: str, words: str
) -> None:
    ended = run_here(make_request(training=SHORT, lora={"r": 4, "modules_to_save": [name]})).ended

    assert ended.code == "bad_target_modules"
    assert words in (ended.message or "")


def test_a_family_without_a_default_of_peft_trains_every_linear_layer_and_says_so(
    make_request: MakeRequest, tmp_path: Path, models_folder: Path
) -> None:
    folder = tmp_path / "models" / NAME
    shutil.copytree(models_folder / NAME, folder)
    config = AutoConfig.from_pretrained(folder).to_dict()
    Olmo2ForCausalLM(Olmo2Config(**{**config, "model_type": "olmo2"})).save_pretrained(folder)
    request = make_request(training=SHORT).model_copy(update={"models_folder": folder.parent})

    reports = run_here(request)

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    warned = {event.code: event.message for event in reports.events(Warn)}
    assert "'olmo2', so every linear layer gets an adapter" in warned["default_targets"]
    card = (request.output_folder / "README.md").read_text()
    assert "on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in card
