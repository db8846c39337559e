"""A function over items in several processes: order, errors, processes that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from worker.processes import parallel_map
from worker.processes.parallel_map import Work, map_in_order

COUNT = 1_000
WORK = Work(COUNT, processors=2)
HERE = os.getpid()


@pytest.fixture
def processes_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_map, "_START_SECONDS", 0.0)


def name_process(item: int) -> tuple[int, int]:
    return item, os.getpid()


def refuse_some(item: int) -> int:
    if item in (700, 900):
        raise ValueError(f"item {item}")
    return item


def end_another_process(item: int, *, caller: int) -> int:
    if os.getpid() != caller and item == 700:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.usefixtures("processes_are_worth_it")
def test_results_are_in_order_and_come_from_other_processes() -> None:
    found = list(map_in_order(name_process, range(COUNT), WORK))

    assert [(item, result[0]) for item, result in found] == [(item, item) for item in range(COUNT)]
    processes = [process for _item, (_same, process) in found]
    assert set(processes[:256]) == {HERE}
    assert HERE not in processes[256:]


@pytest.mark.usefixtures("processes_are_worth_it")
def test_the_error_of_the_first_item_that_has_one_is_raised_after_the_items_before_it() -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="item 700"):
        found.extend(item for item, _result in map_in_order(refuse_some, range(COUNT), WORK))

    assert found == list(range(len(found)))
    assert 600 < len(found) <= 700


@pytest.mark.usefixtures("processes_are_worth_it")
def test_where_a_process_is_killed_the_calling_one_goes_on_alone() -> None:
    found = list(map_in_order(partial(end_another_process, caller=HERE), range(COUNT), WORK))

    assert found == [(item, item) for item in range(COUNT)]


@pytest.mark.usefixtures("processes_are_worth_it")
def test_what_can_not_be_sent_is_called_here() -> None:
    lock = threading.Lock()

    found = list(map_in_order(lambda item: (lock.locked(), os.getpid()), range(COUNT), WORK))

    assert {result for _item, result in found} == {(False, HERE)}


@pytest.mark.parametrize("work", [None, Work(COUNT, 2), Work(10, 8)])
def test_little_work_is_done_here(work: Work | None) -> None:
    assert {process for _item, (_same, process) in map_in_order(name_process, range(COUNT), work)} == {HERE}


@pytest.mark.parametrize(
    ("work", "processes"),
    [
        (Work(1_256, processors=8), 1),
        (Work(52_000, processors=1), 1),
        (Work(52_000, processors=0), 1),
        (Work(52_000, processors=2), 2),
        (Work(52_000, processors=64), 8),
        (Work(256, processors=64), 1),
    ],
)
def test_so_many_processes_are_used_as_save_time(work: Work, processes: int) -> None:
    """Each item takes two milliseconds."""
    assert work.choose_processes(256, 0.512) == processes


PROGRAM = """
import os, time
from worker.processes import parallel_map
from tests.worker.processes.test_parallel_map import wait_long

parallel_map._START_SECONDS = 0.0
if __name__ == "__main__":
    list(parallel_map.map_in_order(wait_long, range(1_000), parallel_map.Work(1_000, 2)))
"""


def wait_long(item: int) -> int:
    if item < 256:
        return item
    print(os.getpid(), flush=True)
    time.sleep(600)
    return item


def test_the_processes_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    caller = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert caller.stdout is not None
    with caller.stdout:
        mappers = [psutil.Process(int(caller.stdout.readline())) for _ in range(2)]
        caller.kill()
        caller.wait()
        _gone, alive = psutil.wait_procs(mappers, timeout=60)

    assert not alive
