"""Optimizations of training on a GPU: the kernels that only run there, and a job that applies them all."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.optim import optimizer

from app.core.jobs.events import Log, Metrics, Samples, Warn
from app.core.settings import TrainingPath
from tests.worker.training.conftest import MakeRequest, make_rows, run_here
from worker.processes.reports import Outcome
from worker.training.optimizations import bnb_optimizer, varlen_attention
from worker.training.trainer import AdapterTrainer


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("key_heads", [8, 2])
@pytest.mark.parametrize("attend", [varlen_attention.triton_varlen, varlen_attention.torch_varlen])
def test_attention_is_that_of_each_row_alone(
    attend: varlen_attention.VarlenAttention, key_heads: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = [37, 1, 200, 16]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
    heads = [
        torch.randn(sum(lengths), count, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for count in (8, key_heads, key_heads)
    ]
    weighing = torch.randn(sum(lengths), 8, 64, device="cuda")
    results = []
    for kernel, dtype in ((attend, torch.bfloat16), (varlen_attention.row_by_row, torch.float32)):
        output = kernel(*(one.to(dtype) for one in heads), starts, 200, scale=0.125, window=window)
        gradients = torch.autograd.grad((output.float() * weighing).sum(), heads)
        results.append([output, *gradients])

    for found, expected in zip(*results, strict=True):
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error.item() < 0.02


@pytest.mark.parametrize("training", [{}, {"packing": True, "max_seq_length": 64}], ids=["rows", "packed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_job_uses_every_optimization_that_applies(
    make_request: MakeRequest, checkpointing: bool, training: dict[str, object]
) -> None:
    # Enough of them that sizes come again, and graphs are replayed.
    steps = {"max_steps": 9, "logging_steps": 1, "gradient_checkpointing": checkpointing, **training}
    spec = {"training": steps, "rows": make_rows(12), "lora": {"r": 8, "dropout": 0.0}}
    reports = run_here(make_request("fast", **spec))
    plain = run_here(make_request("plain", **spec).model_copy(update={"path": TrainingPath.PLAIN}))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    assert [event.message for event in reports.events(Warn) if event.code == "fast_path_wrong"] == []
    said = [event.message for event in reports.events(Log) if event.message.startswith("Optimizations: ")]
    optimizations = ["explicit decoder layers (varlen attention: Triton; other parts: Triton)"]
    optimizations += [] if checkpointing else ["CUDA graphs"]
    names = "; ".join([*optimizations, "bitsandbytes optimizer without synchronization"])
    assert said[0].removesuffix(".").startswith(f"Optimizations: {names}")
    losses, expected = ([event.loss for event in one.events(Metrics)] for one in (reports, plain))
    assert losses == pytest.approx(expected, rel=0.02)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_does_not_wait_for_the_device(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the batch to the end of the backward pass: PyTorch raises where the CPU would wait."""
    plain = AdapterTrainer.training_step

    def watched(trainer: AdapterTrainer, *given: Any, **named: Any) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error" if trainer.state.global_step else "default")
        try:
            return plain(trainer, *given, **named)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(AdapterTrainer, "training_step", watched)
    # Capturing a graph may wait; with checkpoints there are none.
    training = {"max_steps": 4, "gradient_checkpointing": True}
    reports = run_here(make_request(training=training, rows=make_rows(12)))

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended


@pytest.mark.parametrize("kind", [bnb.optim.AdamW32bit, bnb.optim.PagedAdamW32bit])
def test_optimizer_steps_are_ordered_on_whatever_stream_a_job_runs(
    monkeypatch: pytest.MonkeyPatch, kind: type[bnb.optim.AdamW32bit]
) -> None:
    """bitsandbytes launches on the default stream; the gradient comes late, from another one."""
    results = []
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        weight = torch.nn.Parameter(torch.zeros(400, 400, device="cuda"))
        steps = kind([weight], lr=0.1)
        torch.cuda.synchronize()
        turns = bnb_optimizer.DefaultStreamSteps()
        monkeypatch.setattr(optimizer, "sync_gpu", lambda weight: None)
        with torch.cuda.stream(stream):
            for number in range(4):
                gradient = torch.zeros(400, 400, device="cuda")
                torch.cuda._sleep(20_000_000)
                weight.grad = gradient.add_(number - weight.detach())
                turns.on_pre_optimizer_step()
                steps.step()
                turns.on_optimizer_step()
        torch.cuda.synchronize()
        results.append(weight.detach().clone())

    assert results[0].abs().min() > 0
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("packing", [False, True])
def test_sample_answers_are_made_between_captured_steps(make_request: MakeRequest, packing: bool) -> None:
    """The graphs of training are replayed after the model has generated, with the losses of a job without."""
    training = {
        "max_steps": 9,
        "logging_steps": 1,
        "validation_split": 0.3,
        "eval_steps": 3,
        "gradient_checkpointing": False,
        "sample_max_new_tokens": 8,
        **({"packing": True, "max_seq_length": 64} if packing else {}),
    }
    curves = []
    for name, prompts in (("sampled", ["How do I cancel a job?"]), ("plain", "none")):
        request = make_request(name, rows=make_rows(12), training={**training, "sample_prompts": prompts})
        reports = run_here(request)
        assert reports.ended.outcome is Outcome.FINISHED, reports.ended
        assert {event.code for event in reports.events(Warn)} <= {"rows_cut"}
        assert len(reports.events(Samples)) == (5 if name == "sampled" else 0)
        curves.append([event.loss for event in reports.events(Metrics)])

    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
