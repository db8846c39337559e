"""A job uses the optimizations that apply and pass their trial, logs them, and trains as it would without."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.core.jobs.events import Evaluation, Log, Metrics, Warn
from app.core.settings import TrainingPath
from tests.worker.training.conftest import MakeRequest, Reports, make_rows, run_here
from worker.decoder import reading
from worker.decoder.adapters import InputAdapters
from worker.processes.reports import Outcome, TrainingRequest
from worker.training import run
from worker.training.optimizations import apply, planned, varlen_attention

TRAINING: dict[str, Any] = {"max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "save_steps": 2}
SPEC: dict[str, Any] = {
    "lora": {"r": 4, "dropout": 0.0, "target_modules": "all-linear"},
    "training": TRAINING,
    "rows": make_rows(12),
}


def plainly(request: TrainingRequest) -> TrainingRequest:
    return request.model_copy(update={"path": TrainingPath.PLAIN})


def said(reports: Reports) -> str:
    [line] = [event.message for event in reports.events(Log) if event.message.startswith("Optimizations: ")]
    return line


def warned(reports: Reports) -> list[str]:
    return [event.message for event in reports.events(Warn) if event.code == "fast_path_wrong"]


def losses(reports: Reports) -> list[float]:
    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    return [event.loss for event in reports.events(Metrics)]


def weights(request: TrainingRequest) -> dict[str, torch.Tensor]:
    return load_file(request.output_folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}},
        {"training": {"packing": True, "max_seq_length": 64}},
        {"training": {"validation_split": 0.3, "eval_steps": 2}},
        {"lora": {"use_rslora": True, "target_modules": ["q_proj", "v_proj"]}},
        {"quantization": {"load_in_4bit": False}},
        {"quantization": {"bnb_4bit_use_double_quant": True}},
    ],
    ids=["rows", "checkpointed", "packed", "evaluated", "rslora", "dense", "double"],
)
def test_a_fast_job_learns_what_a_plain_one_does(make_request: MakeRequest, changes: dict[str, Any]) -> None:
    spec = {
        **SPEC,
        "lora": SPEC["lora"] | changes.get("lora", {}),
        "training": TRAINING | changes.get("training", {}),
        "quantization": changes.get("quantization", {}),
    }
    fast_request, plain_request = make_request("fast", **spec), plainly(make_request("plain", **spec))

    fast, plain = run_here(fast_request), run_here(plain_request)

    assert said(fast) == (
        "Optimizations: explicit decoder layers (varlen attention: row by row; other parts: PyTorch)."
    )
    assert said(plain) == "Optimizations: none; left out: all (TUNESMITH_TRAINING_PATH is plain)."
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)
    torch.testing.assert_close(weights(fast_request), weights(plain_request), rtol=1e-2, atol=1e-4)
    for left, right in zip(fast.events(Metrics), plain.events(Metrics), strict=True):
        assert left.tokens == right.tokens
        assert left.token_accuracy == pytest.approx(right.token_accuracy)
        assert left.grad_norm == pytest.approx(right.grad_norm, rel=1e-3)
    for found, expected in zip(fast.events(Evaluation), plain.events(Evaluation), strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=["rows", "checkpointed"])
def test_a_family_with_other_layers_goes_the_general_way(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    spec = SPEC | {"training": TRAINING | changes}
    plain = run_here(plainly(make_request("plain", **spec)))
    monkeypatch.setattr(reading, "FAMILIES", ())

    fast = run_here(make_request("fast", **spec))

    assert said(fast) == (
        "Optimizations: LoRA in one autograd function; padding-free batches (varlen attention: row by row); "
        "left out: explicit decoder layers (llama has other layers)."
    )
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)


def test_dropout_draws_what_pefts_layers_draw(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padded batches a job with dropout has the losses of a plain one, too."""
    monkeypatch.setattr(planned, "_padding_free", lambda *_given, **_options: ExitStack())
    monkeypatch.setattr(reading, "FAMILIES", ())
    spec = SPEC | {"lora": {"r": 4, "dropout": 0.3}}

    fast = run_here(make_request("fast", **spec))

    plain = run_here(plainly(make_request("plain", **spec)))
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize("draws_peft_masks", [True, False])
def test_other_dropout_masks_are_no_fault_where_they_are_expected(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, draws_peft_masks: bool
) -> None:
    monkeypatch.setattr(reading, "FAMILIES", ())

    def draw(*given: Any) -> Any:
        torch.rand(1)
        return native_dropout(*given)

    native_dropout = torch.native_dropout
    monkeypatch.setattr(torch, "native_dropout", draw)
    plan_optimizations = apply.plan_optimizations
    monkeypatch.setattr(
        apply,
        "plan_optimizations",
        lambda *given, **named: replace(
            plan_optimizations(*given, **named), draws_peft_masks=draws_peft_masks
        ),
    )

    reports = run_here(make_request(**(SPEC | {"lora": {"r": 4, "dropout": 0.3}})))

    assert ("LoRA in one autograd function" in said(reports)) is not draws_peft_masks
    assert ("LoRA in one autograd function (" in "".join(warned(reports))) is draws_peft_masks


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora": {"r": 4, "use_dora": True}}, "LoRA in one autograd function (DoRA)"),
        ({"lora": {"r": 4, "bias": "all"}}, "LoRA in one autograd function (lora.bias all)"),
        (
            {"training": TRAINING | {"neftune_noise_alpha": 5.0}},
            "padding-free batches (NEFTune's noise depends",
        ),
    ],
    ids=["dora", "bias", "neftune"],
)
def test_optimizations_that_do_not_apply_are_left_out_with_a_reason(
    make_request: MakeRequest, changes: dict[str, Any], reason: str
) -> None:
    reports = run_here(make_request(**(SPEC | changes)))

    assert reason in said(reports).partition("left out: ")[2]
    assert warned(reports) == []
    assert losses(reports)


def test_a_function_that_is_wrong_here_is_found_and_not_used(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = InputAdapters.grads_of_a
    monkeypatch.setattr(InputAdapters, "grads_of_a", lambda *given: [1.1 * grad for grad in right(*given)])
    fast = run_here(make_request("fast", **SPEC))

    monkeypatch.undo()
    plain = run_here(plainly(make_request("plain", **SPEC)))
    [warning] = warned(fast)
    for name in ("explicit decoder layers", "LoRA in one autograd function"):
        assert name in warning
        assert name not in said(fast)
    assert warning.count("(the gradients are off by") == 2
    assert "padding-free batches" in said(fast)
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)


def test_a_kernel_that_lets_rows_read_each_other_is_found_and_not_used(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: Any, longest: int, **options: Any
    ) -> Any:
        one_row = torch.tensor([0, len(q)], dtype=torch.int32)
        return varlen_attention.row_by_row(q, k, v, one_row, len(q), **options)

    monkeypatch.setitem(planned._VARLEN, "row by row", leaking)
    plan_optimizations = apply.plan_optimizations
    # CUDA graphs would be next; where batches stay padded they are not tried.
    monkeypatch.setattr(
        apply,
        "plan_optimizations",
        lambda *given, **named: replace(plan_optimizations(*given, **named), cuda_graphs=True),
    )

    reports = run_here(make_request(**SPEC))

    [warning] = warned(reports)
    assert warning.startswith("Not used, since a trial of it failed here: explicit decoder layers")
    assert "; padding-free batches" in warning
    assert said(reports) == "Optimizations: LoRA in one autograd function."
    assert losses(reports)


def test_a_kernel_that_fails_here_is_not_used(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_given: Any, **_options: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(planned._VARLEN, "row by row", failing)

    reports = run_here(make_request(**SPEC))

    assert "RuntimeError: no kernel image is available" in warned(reports)[0]
    assert losses(reports)


def test_an_optimization_that_fails_is_replaced_by_its_alternative(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_given: Any, **_options: Any) -> torch.Tensor:
        raise RuntimeError("out of shared memory")

    monkeypatch.setitem(planned._VARLEN, "Triton", failing)
    plan_optimizations = apply.plan_optimizations
    monkeypatch.setattr(
        apply,
        "plan_optimizations",
        lambda *given, **named: replace(
            plan_optimizations(*given, **named),
            varlen_kernels=("Triton", "row by row"),
            triton_operations=True,
        ),
    )

    # Triton's interpreter takes seconds for a step.
    reports = run_here(
        make_request(**(SPEC | {"rows": make_rows(2), "training": TRAINING | {"max_steps": 1}}))
    )

    assert (
        "explicit decoder layers (varlen attention: Triton; other parts: Triton) (RuntimeError: out of shared"
        in warned(reports)[0]
    )
    assert "varlen attention: row by row" in said(reports)
    assert losses(reports)


def test_what_fails_with_the_base_models_own_dropout_is_not_used(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of its comparison have no dropout; those of the job do."""
    monkeypatch.setattr(reading, "FAMILIES", ())
    load_model = run.base_model.load_model

    def load_dropping(*given: Any, **named: Any) -> Any:
        model = load_model(*given, **named)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        return model

    monkeypatch.setattr(run.base_model, "load_model", load_dropping)

    reports = run_here(make_request(**SPEC))

    assert losses(reports)
    assert "padding-free" not in said(reports)
    assert "varlen attention with dropout" in "".join(warned(reports))
