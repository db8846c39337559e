"""Runs each family in a process of its own, forked from one that has imported everything."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.families.configs import Family
from benchmarks.families.engine import redirect_output, running_engine
from benchmarks.families.results import FamilyResult
from benchmarks.families.stages import run_family
from worker.models.device import find_device

_RESULT = "result.json"
_LOG = "log.txt"
_TIMEOUT_SECONDS = 240


def run_families(
    families: list[Family], folder: Path, *, process_count: int, targets: str | None = None
) -> Iterable[FamilyResult]:
    """Yield the results in the order of the families. Logs stay in `folder`, a folder for each family."""
    places = {family: folder / str(number) for number, family in enumerate(families)}
    waiting, running = list(families), dict[Family, tuple[ForkProcess, float]]()
    done: dict[Family, FamilyResult] = {}
    next_result = iter(families)
    wanted = next(next_result, None)
    while wanted is not None:
        while waiting and len(running) < process_count:
            family = waiting.pop(0)
            running[family] = (_start(family, places[family], targets), time.monotonic() + _TIMEOUT_SECONDS)
        wait([process.sentinel for process, _deadline in running.values()], timeout=1)
        for family, (process, deadline) in list(running.items()):
            is_late = time.monotonic() > deadline
            if process.is_alive() and not is_late:
                continue
            process.kill()
            process.join()
            del running[family]
            done[family] = _read_result(family, places[family], process.exitcode, is_late=is_late)
        while wanted is not None and wanted in done:
            yield done[wanted]
            wanted = next(next_result, None)


def _start(family: Family, folder: Path, targets: str | None) -> ForkProcess:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(family, folder, targets))
    process.start()
    return process


def _run(family: Family, folder: Path, targets: str | None) -> None:
    """The forked process: the engine first, as a process with many threads should not be forked."""
    redirect_output(folder / _LOG)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()

    def save(result: FamilyResult) -> None:
        (folder / _RESULT).write_text(result.model_dump_json())

    with running_engine(folder / "models", folder, folder / "engine.txt") as engine:
        run_family(family, folder, find_device(), engine, save, targets=targets)


def _read_result(family: Family, folder: Path, exit_code: int | None, *, is_late: bool) -> FamilyResult:
    try:
        result = FamilyResult.model_validate_json((folder / _RESULT).read_text())
    except (OSError, ValueError):
        result = FamilyResult(name=family.name, model_type=family.model_type)
    if is_late:
        result.failure = f"The process took more than {_TIMEOUT_SECONDS} s."
    elif exit_code:
        result.failure = f"The process ended with status {exit_code}."
    return result
