"""A process that waits for a job leaves the device to those who have one."""

from pathlib import Path

import torch

from worker.processes.child_process import ChildProcess
from worker.processes.prewarmed import TRAINING_MODULE
from worker.processes.reports import Waiting, report_adapter

# A context alone takes some hundred.
MAX_BYTES = 32 << 20


def test_a_process_that_waits_has_no_memory_of_the_device(tmp_path: Path) -> None:
    torch.zeros(1, device="cuda")
    before, _total = torch.cuda.mem_get_info()
    child = ChildProcess(TRAINING_MODULE, None, tmp_path / "log")
    try:
        line = child.reports.get(timeout=200)
        assert line is not None, child.log_tail()
        assert report_adapter.validate_json(line) == Waiting()

        after, _total = torch.cuda.mem_get_info()

        assert before - after < MAX_BYTES
    finally:
        child.kill()
        child.close()
