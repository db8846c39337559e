"""The trainer's loss, its resuming, and its passes where memory is short."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import BaseModel
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.core.datasets.rows import AnswerComparison, Passage
from app.core.jobs.events import Evaluation, Metrics, Warn
from app.core.settings import TrainingPath
from tests.tiny_model import NAME
from tests.worker.training.conftest import Reports, following, run_here
from tests.worker.training.preferences.conftest import MakePreferenceRequest, comparisons, labelled
from worker.processes.reports import Advanced, Outcome, TrainingRequest
from worker.training import memory
from worker.training.loss import TokenScores
from worker.training.memory import Batch
from worker.training.trainer import AdapterTrainer

STEPS: dict[str, Any] = {
    "max_steps": 6,
    "learning_rate": 1e-2,
    "logging_steps": 2,
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "validation_split": 0.2,
    "eval_steps": 3,
}
KINDS: list[dict[str, Any]] = [
    {"method": "dpo"},
    {"method": "dpo", "dpo": {"loss_type": ["aot", "sft"]}},
    {"method": "kto", "rows": labelled(12)},
    {"method": "orpo"},
]


def weights(request: TrainingRequest) -> dict[str, torch.Tensor]:
    return load_file(request.output_folder / "adapter_model.safetensors")


def figures(reports: Reports) -> list[tuple[object, ...]]:
    """All that a curve is drawn with, but for times."""
    points = [one for one in reports.events(object) if isinstance(one, Metrics | Evaluation)]
    names = [
        "step",
        "loss",
        *(name for name in Metrics.model_fields if name.startswith(("reward", "log_prob"))),
    ]
    return [(one.type, *(getattr(one, name) for name in names)) for one in points]


@torch.no_grad()
def measure(model: PeftModel, tokenizer: Any, prompt: Passage, answer: Passage) -> torch.Tensor:
    """The log-probability of an answer and the end of its turn, with the chat template written out."""
    assert not isinstance(prompt, str)
    assert not isinstance(answer, str)
    before = f"<|begin|><|im_start|>user\n{prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids = tokenizer(before, add_special_tokens=False).input_ids
    answer_ids = tokenizer(f"{answer[0].content}<|im_end|>", add_special_tokens=False).input_ids
    logits_LV = model(torch.tensor([prompt_ids + answer_ids])).logits[0, len(prompt_ids) - 1 : -1].float()
    return logits_LV.log_softmax(-1).gather(1, torch.tensor(answer_ids)[:, None]).sum()


def expected_loss(folder: Path, adapter: Path, rows: Sequence[AnswerComparison]) -> float:
    """DPO's loss with the weights of an adapter, and the base model as reference."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    losses = []
    for row in rows:
        chosen, rejected = (measure(model, tokenizer, row.prompt, one) for one in (row.chosen, row.rejected))
        with model.disable_adapter():
            before = [measure(model, tokenizer, row.prompt, one) for one in (row.chosen, row.rejected)]
        losses.append(-logsigmoid(0.1 * ((chosen - before[0]) - (rejected - before[1]))))
    return float(torch.stack(losses).mean())


def test_the_loss_is_that_of_the_paper_computed_from_all_logits(
    make_preference_request: MakePreferenceRequest,
) -> None:
    rows = comparisons(6)
    training = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 1}
    request = make_preference_request(
        rows=rows,
        lora={"r": 4, "dropout": 0.3},
        quantization={"load_in_4bit": False},
        training={**training, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
    )

    points = run_here(request).events(Metrics)

    checkpoint = request.job_folder / "checkpoints" / "checkpoint-2"
    assert points[0].loss == pytest.approx(0.6931472, abs=1e-6)
    expected = expected_loss(request.models_folder / NAME, checkpoint, rows)
    assert expected < 0.68
    assert points[2].loss == pytest.approx(expected, rel=1e-4)


def at_step(step: int) -> Callable[[BaseModel], bool]:
    return lambda report: isinstance(report, Advanced) and report.step == step


@pytest.mark.parametrize("kind", [KINDS[0], *KINDS[2:]], ids=lambda kind: kind["method"])
def test_a_stopped_job_ends_with_the_same_curve_and_the_same_weights(
    make_preference_request: MakePreferenceRequest, kind: dict[str, Any]
) -> None:
    spec = {**kind, "training": {**STEPS, "gradient_accumulation_steps": 2}}
    whole, parted = make_preference_request("whole", **spec), make_preference_request("parted", **spec)
    undisturbed = run_here(whole)
    assert undisturbed.ended.outcome is Outcome.FINISHED, undisturbed.ended

    first = run_here(parted, stop_when=at_step(3))
    second = run_here(following(parted, first))

    assert (first.ended.outcome, second.ended.outcome) == (Outcome.STOPPED, Outcome.FINISHED)
    assert figures(first) + figures(second) == figures(undisturbed)
    assert all(torch.equal(one, weights(parted)[name]) for name, one in weights(whole).items())


@pytest.mark.parametrize(("kind", "max_rows"), [(KINDS[1], 3), (KINDS[2], 1)], ids=["aot and sft", "kto"])
def test_a_job_that_runs_out_of_memory_has_the_same_losses(
    make_preference_request: MakePreferenceRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    max_rows: int,
) -> None:
    """Also where the loss of an example depends on the others of its batch."""
    spec = {**kind, "training": STEPS}
    plain = {"path": TrainingPath.PLAIN}  # without trials of optimizations, which fail where memory is short
    plenty = run_here(make_preference_request("plenty", **spec).model_copy(update=plain))
    score = AdapterTrainer.score

    def scarce(self: AdapterTrainer, batch: Batch) -> TokenScores:
        if memory.count_rows(batch) > max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return score(self, batch)

    monkeypatch.setattr(AdapterTrainer, "score", scarce)
    short = run_here(make_preference_request("short", **spec).model_copy(update=plain))

    assert short.ended.outcome is Outcome.FINISHED, short.ended
    assert "out_of_memory" in {event.code for event in short.events(Warn)}
    for one, other in zip(figures(short), figures(plenty), strict=True):
        assert one[:2] == other[:2]
        for value, expected in zip(one[2:], other[2:], strict=True):
            assert value == (expected if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-4))


def test_a_single_sequence_that_does_not_fit_ends_the_job(
    make_preference_request: MakePreferenceRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: AdapterTrainer, batch: Batch) -> TokenScores:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(AdapterTrainer, "score", fail)
    request = make_preference_request(training=STEPS)
    assert run_here(request.model_copy(update={"path": TrainingPath.PLAIN})).ended.code == "out_of_memory"
