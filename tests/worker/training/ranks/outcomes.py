"""What jobs of several processes on the CPU leave behind."""

import psutil
import pytest
import torch
from safetensors.torch import load_file

from app.core.jobs.events import Metrics
from tests.worker.training.conftest import Child, Reports
from worker.processes.reports import Outcome, TrainingRequest


def weights(request: TrainingRequest) -> dict[str, torch.Tensor]:
    return load_file(request.output_folder / "adapter_model.safetensors")


def losses(reports: Reports) -> list[float]:
    return [point.loss for point in reports.events(Metrics)]


def tokens(reports: Reports) -> list[int]:
    return [point.tokens for point in reports.events(Metrics)]


def find_ranks(child: Child) -> list[psutil.Process]:
    """The processes of the ranks, in their order."""
    children = psutil.Process(child.process.pid).children()
    return sorted(
        (one for one in children if "spawn_main" in " ".join(one.cmdline())), key=lambda one: one.pid
    )


def read_the_same(child: Child, two: TrainingRequest, alone: Reports, one: TrainingRequest) -> Reports:
    """Read a job of two processes to its end: losses, tokens and weights are those of one process alone."""
    together = child.read_to_end()
    assert together, child.process.log_tail()
    assert together.ended.outcome is Outcome.FINISHED, child.process.log_tail()
    assert child.process.wait(60) == 0
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert tokens(together) == tokens(alone)
    expected = weights(one)
    for name, weight in weights(two).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    return together
