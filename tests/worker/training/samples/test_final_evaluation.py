"""The evaluation with which a job ends: what it compares, that it changes nothing and fails no job."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from app.core.jobs.events import Checkpoint, FinalEvaluation, Metrics, Warn
from app.core.specs.job import QuantizationSpec
from tests.tiny_model import NAME
from tests.worker.training.conftest import Child, MakeRequest, Reports, following, make_rows, run_here
from tests.worker.training.samples.test_sampler import curve, weights
from worker.models.files import description
from worker.processes.reports import Advanced, Outcome, TrainingRequest
from worker.training.samples import final_evaluation
from worker.training.samples.final_evaluation import FinalEvaluator
from worker.training.samples.generation import SampleGenerator

UNQUANTIZED = QuantizationSpec(load_in_4bit=False).model_dump()
TRAINING: dict[str, Any] = {
    "max_steps": 6,
    "learning_rate": 3e-2,
    "validation_split": 0.4,
    "sample_max_new_tokens": 8,
    "sample_prompts": "none",
}
SPEC: dict[str, Any] = {"quantization": UNQUANTIZED, "training": TRAINING}


def only(reports: Reports) -> FinalEvaluation:
    (found,) = reports.events(FinalEvaluation)
    return found


def models_of(request: TrainingRequest) -> tuple[Any, Any, Any]:
    """(tokenizer, base model, model with the saved adapter), as their files say."""
    folder = request.models_folder / NAME
    base, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _side in range(2))
    adapted = PeftModel.from_pretrained(other, str(request.output_folder))
    return description.load_tokenizer(folder), base.eval(), adapted.eval()


def loss_of(model: Any, prompt_ids: list[int], row_ids: list[int]) -> float:
    labels = [-100] * len(prompt_ids) + row_ids[len(prompt_ids) :]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([row_ids]), labels=torch.tensor([labels])).loss)


def test_losses_and_answers_are_those_of_the_base_model_and_of_the_saved_adapter(
    make_request: MakeRequest,
) -> None:
    request = make_request(**SPEC)

    found = only(run_here(request))

    tokenizer, base, adapted = models_of(request)
    rows = make_rows(10)
    assert (found.step, found.held_out, len(found.rows)) == (6, 4, 4)
    assert [row.line for row in found.rows] == sorted(row.line for row in found.rows)
    for row in found.rows:
        chat = rows[row.line - 1]["messages"]
        assert (row.prompt, row.expected) == (chat[0]["content"], chat[1]["content"])
        prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
        row_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert row.tokens == len(row_ids) - len(prompt_ids)
        assert row.base_loss == pytest.approx(loss_of(base, prompt_ids, row_ids), rel=1e-4)
        assert row.adapter_loss == pytest.approx(loss_of(adapted, prompt_ids, row_ids), rel=1e-4)
        for model, answer in ((base, row.base_answer), (adapted, row.adapter_answer)):
            ids = torch.tensor([prompt_ids])
            output = model.generate(input_ids=ids, do_sample=False, max_new_tokens=8)[0, len(prompt_ids) :]
            assert answer == tokenizer.decode(output).split(tokenizer.eos_token)[0].strip()
    tokens = sum(row.tokens for row in found.rows)
    assert found.base_loss == pytest.approx(sum(row.base_loss * row.tokens for row in found.rows) / tokens)
    assert found.adapter_loss < found.base_loss


def test_losses_and_weights_of_training_are_those_of_a_job_without_it(make_request: MakeRequest) -> None:
    training = {**TRAINING, "logging_steps": 1, "eval_steps": 2}
    evaluated = make_request("evaluated", training=training)
    plain = make_request("plain", training=training, evaluate=False)

    found, expected = run_here(evaluated), run_here(plain)

    assert len(found.events(FinalEvaluation)) == 1
    assert expected.events(FinalEvaluation) == []
    assert curve(found) == curve(expected)
    ours, others = weights(evaluated.output_folder), weights(plain.output_folder)
    assert all(torch.equal(ours[name], others[name]) for name in others)


def test_the_adapter_of_early_stopping_is_the_one_that_is_compared(make_request: MakeRequest) -> None:
    training = {"eval_steps": 1, "max_steps": 30, "early_stopping_patience": 2, "learning_rate": 1.0}
    request = make_request(quantization=UNQUANTIZED, training={**TRAINING, **training})

    found = only(run_here(request))

    tokenizer, _base, adapted = models_of(request)
    chat = make_rows(10)[found.rows[0].line - 1]["messages"]
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (prompt, tokenizer.apply_chat_template(chat, tokenize=False))
    ]
    assert found.step < 30
    assert found.rows[0].adapter_loss == pytest.approx(loss_of(adapted, *ids), rel=1e-4)


@pytest.fixture
def biased_models(models_folder: Path, tmp_path: Path) -> Path:
    """A folder of base models whose attention has biases."""
    folder = tmp_path / "models" / NAME
    shutil.copytree(models_folder / NAME, folder)
    config = AutoConfig.from_pretrained(folder, attention_bias=True)
    AutoModelForCausalLM.from_pretrained(folder, config=config).save_pretrained(folder)
    return folder.parent


@pytest.mark.parametrize(
    "lora",
    [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}],
    ids=["biases", "whole modules", "dora"],
)
def test_the_base_model_is_without_all_that_was_trained(
    make_request: MakeRequest, biased_models: Path, lora: dict[str, Any]
) -> None:
    plain, other = (
        make_request(name, lora={"r": 4, **own}, **SPEC).model_copy(update={"models_folder": biased_models})
        for name, own in (("plain", {}), ("other", lora))
    )

    expected, found = only(run_here(plain)), only(run_here(other))

    assert [row.base_loss for row in found.rows] == pytest.approx([row.base_loss for row in expected.rows])
    assert [row.base_answer for row in found.rows] == [row.base_answer for row in expected.rows]
    assert found.adapter_loss != expected.adapter_loss


def test_a_job_that_continues_from_an_adapter_is_compared_with_the_base_model(
    make_request: MakeRequest,
) -> None:
    first = make_request("first", **SPEC)
    before = only(run_here(first))
    second = make_request("second", **SPEC).model_copy(update={"continue_from": first.output_folder})

    after = only(run_here(second))

    assert [row.base_loss for row in after.rows] == [row.base_loss for row in before.rows]
    assert after.adapter_loss < before.adapter_loss


def test_rows_are_drawn_by_the_seed_up_to_twenty(make_request: MakeRequest) -> None:
    training = {**TRAINING, "max_steps": 1, "validation_split": 0.5, "sample_max_new_tokens": 1}
    requests = [
        make_request(f"job {number}", rows=make_rows(80), training={**training, "seed": seed})
        for number, seed in enumerate((1, 1, 2))
    ]

    lines = [[row.line for row in only(run_here(request)).rows] for request in requests]

    assert [len(one) for one in lines] == [20, 20, 20]
    assert lines[0] == lines[1] != lines[2]


@pytest.mark.parametrize(
    "spec", [{**SPEC, "evaluate": False}, {"training": {"max_steps": 1}}], ids=["turned off", "no rows"]
)
def test_without_rows_or_where_it_is_turned_off_there_is_none(
    make_request: MakeRequest, spec: dict[str, Any]
) -> None:
    assert run_here(make_request(**spec)).events(FinalEvaluation) == []


def test_a_failure_is_a_warning_and_the_job_goes_on(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: Any, **_named: Any) -> None:
        raise ValueError("no cache for this model")

    monkeypatch.setattr(SampleGenerator, "generate", fail)
    request = make_request(**SPEC)
    reports = run_here(request)

    assert reports.ended.outcome is Outcome.FINISHED
    (warning,) = reports.events(Warn)
    assert warning.code == "final_evaluation_failed"
    assert "no cache for this model" in warning.message
    assert weights(request.output_folder)


def test_where_memory_runs_out_half_of_the_rows_are_answered_at_a_time(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = only(run_here(make_request("plain", **SPEC)))
    sizes: list[int] = []
    generate = SampleGenerator.generate

    def run_out(self: SampleGenerator, prompts: Any, **named: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return generate(self, prompts, **named)

    monkeypatch.setattr(SampleGenerator, "generate", run_out)
    found = only(run_here(make_request("short of memory", **SPEC)))

    assert sizes == [4, 2, 1, 1, 2, 1, 1] * 2
    assert [row.adapter_answer for row in found.rows] == [row.adapter_answer for row in plain.rows]


def test_a_job_that_is_stopped_in_it_resumes_without_another_step(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(**SPEC)
    stopped = run_here(request, stop_when=is_last_evaluation())
    assert stopped.ended.outcome is Outcome.STOPPED
    assert stopped.events(FinalEvaluation) == []

    resumed = run_here(following(request, stopped))

    assert resumed.ended.outcome is Outcome.FINISHED
    assert resumed.events(Metrics) == resumed.events(Checkpoint) == []
    assert only(resumed).rows == only(run_here(make_request("whole", **SPEC))).rows


def is_last_evaluation() -> Any:
    """Whether the second phase of evaluating begins, which is the final evaluation."""
    phases: list[Any] = []

    def is_it(report: Any) -> bool:
        if isinstance(report, Advanced) and report.phase is not None:
            phases.append(report.phase)
        return [str(phase) for phase in phases].count("evaluating") == 2

    return is_it


def test_where_time_is_up_rows_have_losses_alone(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_evaluation, "_BATCH_TOKENS", 1)  # a batch a row
    now = [0.0]
    init, generate = FinalEvaluator.__init__, SampleGenerator.generate

    def with_clock(self: FinalEvaluator, *given: Any) -> None:
        init(self, *given, seconds=100.0, clock=lambda: now[0])

    def take_half(self: SampleGenerator, prompts: Any, **named: Any) -> Any:
        now[0] += 30.0
        return generate(self, prompts, **named)

    monkeypatch.setattr(FinalEvaluator, "__init__", with_clock)
    monkeypatch.setattr(SampleGenerator, "generate", take_half)

    rows = only(run_here(make_request(**SPEC))).rows

    assert [row.base_answer is not None for row in rows] == [True, True, False, False]
    assert all(row.base_loss > 0 for row in rows)


def test_of_a_comparison_the_chosen_answer_is_the_reference(make_request: MakeRequest) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"How do I cancel job {number}?"}],
            "chosen": [{"role": "assistant", "content": f"Send POST {number}."}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        }
        for number in range(8)
    ]

    found = only(run_here(make_request(rows=rows, method="dpo", **SPEC)))

    assert [row.expected for row in found.rows] == [f"Send POST {row.line - 1}." for row in found.rows]
    assert found.base_loss != found.adapter_loss


@pytest.mark.slow
def test_a_job_that_is_killed_in_it_goes_on_without_another_step(
    make_request: MakeRequest, start_child: Callable[[TrainingRequest], Child]
) -> None:
    request = make_request(**SPEC)
    child, is_it = start_child(request), is_last_evaluation()
    for report in child.read():
        if is_it(report):
            child.process.kill()
            break
    assert child.reports.events(FinalEvaluation) == []

    resumed = start_child(following(request, child.reports)).read_to_end()

    assert resumed.ended.outcome is Outcome.FINISHED
    assert resumed.events(Metrics) == resumed.events(Checkpoint) == []
    assert only(resumed).rows == only(run_here(make_request("whole", **SPEC))).rows
