"""Jobs on base models whose files hold quantized weights."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig

from app.core.jobs.events import Warn
from tests.tiny_model import NAME
from tests.worker.models.files.test_prequantized import write_fp8, write_settings
from tests.worker.training.conftest import MakeRequest, run_here
from worker.processes.reports import Outcome, TrainingRequest


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    """A model with the tiny model's tokenizer, whose layers are in fp8."""
    folder = Path(shutil.copytree(models_folder / NAME, tmp_path / "models" / NAME))
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder, num_key_value_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_fp8(folder, tmp_path / "plain")
    return folder


@pytest.fixture
def request_of(make_request: MakeRequest, folder: Path) -> TrainingRequest:
    request = make_request(training={"max_steps": 2, "learning_rate": 1e-2})
    return request.model_copy(update={"models_folder": folder.parent})


def test_a_base_in_fp8_trains_in_4_bits(request_of: TrainingRequest, tmp_path: Path) -> None:
    reports = run_here(request_of)

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    warned = {event.code: event.message for event in reports.events(Warn)}
    assert "weights are in fp8" in warned["prequantized"]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert PeftModel.from_pretrained(base, str(request_of.output_folder))


def test_a_base_in_another_format_fails_before_it_is_loaded(
    request_of: TrainingRequest, folder: Path
) -> None:
    write_settings(folder, {"quant_method": "gptq", "bits": 4})
    (folder / "model.safetensors").unlink()

    ended = run_here(request_of).ended

    assert ended.code == "model_unreadable"
    assert "quantized already (gptq)" in (ended.message or "")
