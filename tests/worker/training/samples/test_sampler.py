"""Sample answers of whole attempts: when they are made, that they change nothing and fail no job."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import BaseModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

from app.core.jobs.events import Checkpoint, Evaluation, Metrics, Samples, Warn
from app.core.specs.job import QuantizationSpec
from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, Reports, following, run_here
from tests.worker.training.progress.test_reporter import CPU
from worker.models.files import description
from worker.processes.reports import Happened, Outcome
from worker.training.attempt import TrainingAttempt
from worker.training.progress.counters import Counters
from worker.training.samples import sampler
from worker.training.samples.generation import Generated, SampleGenerator
from worker.training.samples.prompts import AnswerDecoder, SamplePrompt

QUESTION = "How do I cancel a job?"
TRAINING: dict[str, Any] = {
    "max_steps": 6,
    "learning_rate": 3e-2,
    "logging_steps": 1,
    "validation_split": 0.3,
    "eval_steps": 2,
    "sample_prompts": [QUESTION],
    "sample_max_new_tokens": 8,
}
SPEC: dict[str, Any] = {"lora": {"r": 4, "dropout": 0.1}, "training": TRAINING, "evaluate": False}


def with_training(**changes: Any) -> dict[str, Any]:
    return {**SPEC, "training": {**TRAINING, **changes}}


def places(reports: Reports) -> list[tuple[int, bool]]:
    return [(one.step, one.is_final) for one in reports.events(Samples)]


def curve(reports: Reports) -> list[tuple[int, float, float | None]]:
    points = [(one.step, one.loss, one.grad_norm) for one in reports.events(Metrics)]
    return points + [(one.step, one.loss, None) for one in reports.events(Evaluation)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_model_is_sampled_before_training_at_each_evaluation_and_at_the_end(
    make_request: MakeRequest,
) -> None:
    reports = run_here(make_request(**SPEC))

    assert places(reports) == [(0, False), (2, False), (4, False), (6, False), (6, True)]
    first, *_others, last = reports.events(Samples)
    assert first.answers[0].prompt == QUESTION
    assert first.answers[0].answer != last.answers[0].answer
    assert last.epoch == 6 / 2
    assert first.seconds > 0


@pytest.mark.parametrize("packing", [False, True])
def test_losses_and_weights_are_those_of_a_job_without_samples(
    make_request: MakeRequest, packing: bool
) -> None:
    spec = with_training(packing=packing, gradient_checkpointing=True)
    sampled, plain = (
        make_request(name, **{**spec, "training": {**spec["training"], "sample_prompts": prompts}})
        for name, prompts in (("sampled", [QUESTION]), ("plain", "none"))
    )

    found, expected = run_here(sampled), run_here(plain)

    assert len(found.events(Samples)) == 5
    assert expected.events(Samples) == []
    assert curve(found) == curve(expected)
    ours, others = weights(sampled.output_folder), weights(plain.output_folder)
    assert all(torch.equal(ours[name], others[name]) for name in others)


def test_the_last_answers_are_those_of_the_saved_adapter(make_request: MakeRequest) -> None:
    request = make_request(**{**SPEC, "quantization": QuantizationSpec(load_in_4bit=False).model_dump()})

    last = run_here(request).events(Samples)[-1]

    folder = request.models_folder / NAME
    tokenizer = description.load_tokenizer(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(request.output_folder))
    chat = [{"role": "user", "content": QUESTION}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
    output = model.generate(input_ids=prompt, do_sample=False, max_new_tokens=8)
    text = AnswerDecoder(tokenizer, frozenset([tokenizer.eos_token_id]))
    assert last.answers[0].answer == text.decode(output[0, prompt.shape[1] :].tolist())


def test_rows_to_evaluate_on_are_the_prompts_where_the_job_names_none(make_request: MakeRequest) -> None:
    reports = run_here(make_request(**with_training(sample_prompts="auto")))

    assert (places(reports)[0], places(reports)[-1]) == ((0, False), (6, True))
    answers = reports.events(Samples)[0].answers
    assert len(answers) == 3
    assert all(one.expected and one.expected.startswith("Send POST number") for one in answers)


def test_without_rows_to_evaluate_on_nothing_is_sampled(make_request: MakeRequest) -> None:
    reports = run_here(make_request(training={"max_steps": 2}))

    assert reports.events(Samples) == []


def test_the_adapter_of_early_stopping_has_the_last_answers(make_request: MakeRequest) -> None:
    training = {"eval_steps": 1, "max_steps": 30, "early_stopping_patience": 2, "learning_rate": 1.0}
    reports = run_here(make_request(**with_training(**training)))

    losses = {one.step: one.loss for one in reports.events(Evaluation)}
    best = min(losses, key=lambda step: losses[step])
    assert best < max(losses)
    assert places(reports)[-1] == (best, True)
    at_best = next(one for one in reports.events(Samples) if one.step == best)
    assert reports.events(Samples)[-1].answers == at_best.answers


def test_a_failure_is_one_warning_and_the_job_goes_on(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: Any) -> None:
        raise ValueError("no cache for this model")

    monkeypatch.setattr(SampleGenerator, "generate", fail)
    reports = run_here(make_request(**SPEC))

    assert reports.ended.outcome is Outcome.FINISHED
    (warning,) = reports.events(Warn)
    assert (warning.code, "no cache for this model" in warning.message) == ("samples_failed", True)
    assert reports.events(Samples) == []


def test_prompts_that_can_not_be_made_are_a_warning(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: Any, **_named: Any) -> None:
        raise KeyError("role")

    monkeypatch.setattr(sampler, "find_prompts", fail)
    reports = run_here(make_request(**SPEC))

    assert reports.ended.outcome is Outcome.FINISHED
    assert [warning.code for warning in reports.events(Warn)] == ["samples_failed"]


def test_prompts_that_are_too_long_are_counted(make_request: MakeRequest) -> None:
    reports = run_here(make_request(**with_training(sample_prompts=[QUESTION, "why? " * 200])))

    (warning,) = reports.events(Warn)
    assert warning.message.startswith("1 of training.sample_prompts are left out")
    assert len(reports.events(Samples)[0].answers) == 1


def test_a_job_that_is_stopped_while_it_is_sampled_begins_anew(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(**SPEC)
    began = []
    generate = SampleGenerator.generate

    def stop_first(self: SampleGenerator, prompts: Any) -> Any:
        began.append(True)
        self._trainer._send(Happened(event=Warn(code="test", message="sampling")))
        return generate(self, prompts)

    monkeypatch.setattr(SampleGenerator, "generate", stop_first)
    reports = run_here(request, stop_when=is_test_warning)

    assert reports.ended.outcome is Outcome.STOPPED
    assert (reports.events(Samples), reports.events(Metrics), reports.events(Checkpoint)) == ([], [], [])
    monkeypatch.undo()
    resumed = run_here(following(request, reports))
    assert places(resumed)[0] == (0, False)


def is_test_warning(report: BaseModel) -> bool:
    return isinstance(report, Happened) and isinstance(report.event, Warn) and report.event.code == "test"


def test_a_resumed_job_is_not_sampled_as_if_it_were_new(make_request: MakeRequest) -> None:
    request = make_request(**with_training(save_steps=1))
    first = run_here(request, stop_when=lambda one: getattr(one, "step", None) == 3)

    resumed = run_here(following(request, first))

    assert places(first) == [(0, False), (2, False)]
    assert places(resumed) == [(4, False), (6, False), (6, True)]


class FakeGenerator(SampleGenerator):
    """Takes ten seconds of a clock for each answer."""

    def __init__(self) -> None:
        self.now = 0.0

    def generate(self, prompts: Any) -> Any:
        self.now += 10.0
        return [Generated([], is_cut=False) for _prompt in prompts]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [("auto", [0, 200, 400, 600, 600]), ([QUESTION], [0, 100, 200, 300, 400, 500, 600, 600])],
)
def test_answers_between_the_first_and_the_last_take_a_twentieth_of_the_time(
    make_request: MakeRequest, prompts: Any, expected: list[int]
) -> None:
    sent: list[Any] = []
    request = make_request(**with_training(sample_prompts=prompts))
    attempt = TrainingAttempt(request, CPU, sent.append, threading.Event())
    counters, generator = Counters(), FakeGenerator()
    tokenizer: Any = SimpleNamespace(decode=lambda *_given, **_named: "")
    found = sampler.AnswerSampler(
        attempt,
        counters,
        generator,
        [SamplePrompt("?", [1])],
        AnswerDecoder(tokenizer, frozenset()),
        clock=lambda: generator.now,
    )
    found.start()
    for step in range(100, 700, 100):
        counters.seconds = float(step)
        state = TrainerState(global_step=step, epoch=1.0)
        found.on_evaluate(None, state, TrainerControl())
    found.finish(600, 1.0)
    assert [report.event.step for report in sent] == expected
