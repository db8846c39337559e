"""Whole attempts at a job: what they report, what they leave behind, and how they fail."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.core.jobs.events import Checkpoint, Evaluation, Metrics, Warn
from app.core.specs.states import Phase
from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, Reports, following, make_rows, run_here
from worker.models.files.fingerprint import take_fingerprint
from worker.processes.reports import Advanced, Outcome, TrainingRequest
from worker.training.trainer import AdapterTrainer

SHORT: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-2}


def phases(reports: Reports) -> list[Phase]:
    return [report.phase for report in reports if isinstance(report, Advanced) and report.phase]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_job_reports_each_phase_until_its_adapter_is_verified(make_request: MakeRequest) -> None:
    request = make_request(training={**SHORT, "logging_steps": 2, "save_steps": 2})

    reports = run_here(request)

    assert reports.ended.outcome is Outcome.FINISHED
    assert phases(reports) == [
        Phase.PREPARING,
        Phase.LOADING,
        Phase.TRAINING,
        Phase.SAVING,
        Phase.VERIFYING,
    ]
    assert [event.step for event in reports.events(Metrics)] == [1, 2, 3]
    assert [event.step for event in reports.events(Checkpoint)] == [2, 3]
    steps = [report for report in reports if isinstance(report, Advanced) and report.step]
    assert [(report.step, report.total_steps) for report in steps] == [(1, 3), (2, 3), (3, 3)]
    assert not reports.events(Warn)


def test_checkpoints_ask_for_no_gradient_of_what_is_embedded(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[bool] = []
    train = AdapterTrainer.training_step

    def training_step(self: AdapterTrainer, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        embedded.append(model.get_input_embeddings()(inputs["input_ids"]).requires_grad)
        return train(self, model, inputs, *rest)

    monkeypatch.setattr(AdapterTrainer, "training_step", training_step)
    kept, checkpointed = (
        run_here(
            make_request(f"job-{checkpoints}", training={**SHORT, "gradient_checkpointing": checkpoints})
        )
        for checkpoints in (False, True)
    )

    assert embedded == [False] * 6
    losses = [[event.loss for event in reports.events(Metrics)] for reports in (kept, checkpointed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_metrics_hold_what_a_person_looks_at(make_request: MakeRequest) -> None:
    first, last = run_here(make_request(training={**SHORT, "logging_steps": 3})).events(Metrics)

    assert (first.step, last.step, last.total_steps, last.epoch) == (1, 3, 3, 1.0)
    assert last.loss < first.loss
    assert last.learning_rate == 1e-2
    assert last.eta_seconds == 0
    assert last.tokens > first.tokens > 0
    memory = (last.memory_bytes, last.memory_used_bytes)
    for value in (last.grad_norm, last.token_accuracy, last.tokens_per_second, *memory):
        assert value is not None
        assert value > 0
    assert last.gpu_utilization_percent is None  # there is no GPU


def test_the_output_folder_is_complete_and_names_no_machine(make_request: MakeRequest) -> None:
    request = make_request(training=SHORT)

    run_here(request)

    names = {path.name for path in request.output_folder.iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "tunesmith.json",
    }
    texts = [path.read_text() for path in request.output_folder.glob("*.json*")]
    assert not any(str(request.models_folder) in text or "/tmp/" in text for text in texts)
    config = json.loads((request.output_folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == NAME


def test_the_record_says_where_the_adapter_comes_from(make_request: MakeRequest) -> None:
    request = make_request(training=SHORT)

    run_here(request)

    record = json.loads((request.output_folder / "tunesmith.json").read_text())
    assert record["spec"] == request.spec.model_dump(mode="json")
    assert record["base_weights"] == take_fingerprint(request.models_folder / NAME)
    assert record["dataset"]["sha256"] == request.dataset_sha256
    assert {"torch", "transformers", "peft", "python"} <= record["versions"].keys()
    assert record["metrics"]["steps"] == 3
    assert record["metrics"]["loss"] > 0


def test_tensorboard_files_are_written(make_request: MakeRequest) -> None:
    request = make_request(training={**SHORT, "validation_split": 0.2})

    run_here(request)

    found = {path.parent for path in request.job_folder.rglob("events.out.tfevents.*")}
    assert found == {request.job_folder / "tensorboard"}


def test_rows_that_are_cut_or_dropped_are_named(make_request: MakeRequest) -> None:
    rows = [{"prompt": "How?", "completion": "So."}, {"prompt": "Why? " * 20, "completion": "So."}] * 2

    reports = run_here(make_request(rows=rows, training={**SHORT, "max_seq_length": 16}))

    warnings = {event.code: event.message for event in reports.events(Warn)}
    assert "lines 2, 4" in warnings["rows_cut"]
    assert "lines 2, 4" in warnings["rows_dropped"]
    assert reports.ended.outcome is Outcome.FINISHED


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_every_kind_of_base_and_bias_trains(make_request: MakeRequest, bias: str, load_in_4bit: bool) -> None:
    request = make_request(
        training=SHORT, lora={"r": 4, "bias": bias}, quantization={"load_in_4bit": load_in_4bit}
    )

    assert run_here(request).ended.outcome is Outcome.FINISHED


@pytest.mark.parametrize(
    "optim", ["paged_adamw_8bit", "adamw_torch_fused", "adafactor", "sgd", "paged_lion_8bit"]
)
def test_optimizers_run_on_a_cpu(make_request: MakeRequest, optim: str) -> None:
    request = make_request(training={**SHORT, "optim": optim})

    assert run_here(request).ended.outcome is Outcome.FINISHED


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"base_model": "owner/missing"}, "hub_unreachable", "not on this machine"),
        ({"lora": {"target_modules": ["nothing_proj"]}}, "bad_target_modules", "nothing_proj"),
        ({"lora": {"target_modules": ["lm_head"]}}, "bad_target_modules", "lm_head"),
        ({"lora": {"target_modules": ["input_layernorm"]}}, "bad_target_modules", "not supported"),
        ({"training": {"fp16": True}}, "invalid_request", "needs a GPU"),
        ({"training": {"max_seq_length": 8}}, "nothing_to_learn", "within 8 tokens"),
        ({"training": {**SHORT, "learning_rate": 1e-30}}, "adapter_inert", "does not change"),
    ],
)
def test_a_failure_says_what_is_wrong(
    make_request: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, Any],
    code: str,
    words: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = [{"prompt": "How do I cancel a job?", "completion": "POST it."}] * 4

    ended = run_here(make_request(rows=rows, **spec)).ended

    assert (ended.outcome, ended.code) == (Outcome.FAILED, code)
    assert words in (ended.message or "")
    assert ended.hint


def test_target_modules_that_match_nothing_are_answered_with_those_that_would(
    make_request: MakeRequest,
) -> None:
    ended = run_here(make_request(lora={"target_modules": ["nothing_proj"]})).ended
    assert "Those of this model: down_proj, gate_proj, k_proj," in (ended.hint or "")
    assert "lm_head" not in (ended.hint or "")


def test_a_base_model_of_numbers_that_are_none_is_refused(make_request: MakeRequest, tmp_path: Path) -> None:
    request = poison(make_request(training=SHORT), tmp_path)

    ended = run_here(request).ended

    assert ended.code == "model_unreadable"
    assert "its logits are not finite numbers" in (ended.message or "")


def test_a_loss_that_is_not_a_number_stops_the_job(
    make_request: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if training had led there: the check before it would refuse the base model.
    monkeypatch.setattr("worker.training.run.refuse_broken", lambda model, folder: None)

    reports = run_here(poison(make_request(training=SHORT), tmp_path))

    assert reports.ended.code == "loss_not_finite"
    assert "step 1 of 3" in (reports.ended.message or "")
    assert not reports.events(Metrics)


def poison(request: TrainingRequest, folder: Path) -> TrainingRequest:
    """The request with a base model in which one weight is not a number."""
    poisoned = shutil.copytree(request.models_folder / NAME, folder / "poisoned" / NAME)
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    return request.model_copy(update={"models_folder": poisoned.parent})


def test_a_stop_before_training_ends_at_the_next_phase(make_request: MakeRequest) -> None:
    reports = run_here(make_request(training=SHORT), stop_when=lambda report: True)

    assert reports.ended.outcome is Outcome.STOPPED
    assert phases(reports) == [Phase.PREPARING]


def test_evaluation_leaves_training_as_it_was(make_request: MakeRequest) -> None:
    spec: dict[str, Any] = {"lora": {"r": 4, "dropout": 0.0}}
    training = {**SHORT, "max_steps": 6, "validation_split": 0.2}
    quiet = make_request("quiet", training=training, **spec)
    watched = make_request("watched", training={**training, "eval_steps": 2}, **spec)

    run_here(quiet)
    reports = run_here(watched)

    assert [event.step for event in reports.events(Evaluation)] == [2, 4, 6]
    left, right = weights(quiet.output_folder), weights(watched.output_folder)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_rows_held_out_are_evaluated_once_at_the_end_by_default(make_request: MakeRequest) -> None:
    reports = run_here(make_request(training={**SHORT, "validation_split": 0.2}))

    assert [event.step for event in reports.events(Evaluation)] == [3]
    assert Phase.EVALUATING in phases(reports)


EARLY: dict[str, Any] = {
    "max_steps": 40,
    "learning_rate": 0.5,
    "eval_steps": 1,
    "early_stopping_patience": 2,
    "validation_split": 0.3,
}


def test_early_stopping_keeps_the_best_adapter(make_request: MakeRequest) -> None:
    rows = make_rows(10)
    early = make_request("early", rows=rows, training=EARLY)

    reports = run_here(early)

    evaluations = reports.events(Evaluation)
    best = min(evaluations, key=lambda event: event.loss)
    assert evaluations[-1].step == best.step + 2 < 40
    cut = make_request("cut", rows=rows, training={**EARLY, "max_steps": best.step})
    run_here(cut)
    left, right = weights(early.output_folder), weights(cut.output_folder)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_job_that_stopped_early_does_not_train_on_after_an_interruption(make_request: MakeRequest) -> None:
    request = make_request(training=EARLY)
    first = run_here(request)
    before = weights(request.output_folder)
    shutil.rmtree(request.output_folder)

    reports = run_here(following(request, first))

    assert reports.ended.outcome is Outcome.FINISHED
    assert not reports.events(Metrics)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(request.output_folder).items())


def test_a_job_that_was_interrupted_after_training_only_saves(make_request: MakeRequest) -> None:
    # Not at the end of an epoch: there the trainer stops of its own accord.
    request = make_request(training={**SHORT, "max_steps": 4})
    first = run_here(request)
    before = weights(request.output_folder)

    reports = run_here(following(request, first))

    assert reports.ended.outcome is Outcome.FINISHED
    assert not reports.events(Metrics)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(request.output_folder).items())


def test_packing_trains_on_fewer_sequences(make_request: MakeRequest) -> None:
    request = make_request(training={"num_train_epochs": 1, "packing": True, "learning_rate": 1e-2})

    reports = run_here(request)

    assert reports.ended.outcome is Outcome.FINISHED
    assert reports.events(Metrics)[-1].total_steps == 1


def test_the_request_is_what_the_worker_sends(make_request: MakeRequest) -> None:
    request = make_request(training=SHORT)

    assert TrainingRequest.model_validate_json(request.model_dump_json()) == request
