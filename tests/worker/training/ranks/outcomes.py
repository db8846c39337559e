"""What jobs of several processes on the CPU leave behind, and the death of one of their ranks."""

import os
import signal

import psutil
import pytest
import torch
from safetensors.torch import load_file

from app.core.jobs.events import Checkpoint, Metrics
from tests.worker.training.conftest import Child, Reports
from worker.processes.reports import Happened, Outcome, TrainingRequest


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


def read_to_checkpoint(child: Child, step: int) -> None:
    """Read the reports of a job up to that of its checkpoint of a step."""
    for report in child.read():
        if isinstance(report, Happened) and report.event == Checkpoint(step=step):
            return
    raise AssertionError(child.process.log_tail())


def read_death(child: Child) -> str:
    """Read a job to its end, which has no last report: a process died. Returns what is said of that."""
    for _report in child.read():
        pass
    assert child.process.wait(60) == 1
    return child.process.describe_death()


def kill_rank(child: Child, rank: int) -> None:
    """Kill one of two ranks after the checkpoint of step 4, and read how the job ends."""
    read_to_checkpoint(child, 4)
    os.kill(find_ranks(child)[rank].pid, signal.SIGKILL)
    assert f"rank {rank} of 2 was killed by signal 9 (SIGKILL)" in read_death(child)


def read_resumed(child: Child) -> Reports:
    """Read an attempt that goes on from the checkpoint of step 4 to its end."""
    reports = child.read_to_end()
    assert reports.ended.outcome is Outcome.FINISHED, child.process.log_tail()
    assert reports.events(Metrics)[0].step > 4
    return reports


def assert_equal_weights(request: TrainingRequest, expected: TrainingRequest) -> None:
    """The weights of two jobs are equal, bit for bit."""
    wanted = weights(expected)
    for name, weight in weights(request).items():
        assert torch.equal(weight, wanted[name]), name
