"""What the verification finds, tested by breaking the files of a finished job."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.core.datasets.rows import Conversation, Message
from app.core.errors.jobs import AdapterInert, LossNotFinite, TemplateMismatch
from app.core.specs.job import QuantizationSpec
from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, run_here
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description
from worker.templates.choice import set_template
from worker.templates.token_rows import Sample, format_rows
from worker.training.output.verification import verify_prompts, verify_weights

NOW = datetime.now(UTC)
ROW = Conversation((Message("user", "How do I cancel a job?"), Message("assistant", "Send POST.")))


@pytest.fixture
def finished(make_request: MakeRequest) -> Path:
    """A job's output folder."""
    request = make_request(training={"max_steps": 1, "learning_rate": 1e-2})
    run_here(request)
    return request.output_folder


@pytest.fixture
def sample(models_folder: Path) -> Sample:
    tokenizer = description.load_tokenizer(models_folder / NAME)
    set_template(tokenizer)
    return format_rows([(1, ROW)], tokenizer, assistant_only=False, max_length=256).samples[0]


def template_name(folder: Path) -> str:
    """The hash that the record gives."""
    record = json.loads((folder / "tunesmith.json").read_text())
    return str(record["chat_template"]["sha256"])


def test_a_sound_adapter_passes_verification(finished: Path, sample: Sample, models_folder: Path) -> None:
    verify_prompts(finished, [sample], template_name(finished), moment=NOW)
    verify_weights(load_base(models_folder), finished, sample.tokens)


def test_a_template_that_renders_otherwise_is_a_mismatch(finished: Path, sample: Sample) -> None:
    path = finished / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_end|>"))

    with pytest.raises(TemplateMismatch, match="Line 1: at token 2"):
        verify_prompts(finished, [sample], template_name(finished), moment=NOW)


def test_a_template_that_is_not_the_recorded_one_is_a_mismatch(finished: Path, sample: Sample) -> None:
    path = finished / "chat_template.jinja"
    path.write_text(path.read_text() + "{# changed #}")

    with pytest.raises(TemplateMismatch, match="not the one it was trained with"):
        verify_prompts(finished, [sample], template_name(finished), moment=NOW)


def test_a_tokenizer_that_splits_otherwise_is_a_mismatch(finished: Path, sample: Sample) -> None:
    path = finished / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(settings))

    with pytest.raises(TemplateMismatch, match="how do i"):
        verify_prompts(finished, [sample], template_name(finished), moment=NOW)


@pytest.mark.parametrize(
    ("factor", "failure"), [(0.0, AdapterInert), (float("nan"), LossNotFinite), (float("inf"), LossNotFinite)]
)
def test_weights_that_do_nothing_or_harm_are_found(
    finished: Path, sample: Sample, models_folder: Path, factor: float, failure: type[Exception]
) -> None:
    change_weights(finished, lambda name: factor if "lora_B" in name else 1.0)

    with pytest.raises(failure):
        verify_weights(load_base(models_folder), finished, sample.tokens)


def change_weights(folder: Path, factor_of: Callable[[str], float]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * factor_of(name) for name, tensor in load_file(path).items()}, path)


def load_base(models_folder: Path) -> base_model.PreTrainedModel:
    return base_model.load_model(models_folder / NAME, QuantizationSpec(), find_device())
