"""A job of two processes through the queue: one of them is killed, the next attempt ends the job."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.waiting import wait_for
from tests.worker.runners.job_runs import claim, job_of
from tests.worker.runners.test_jobs import running
from tests.worker.training.ranks.through_queue import claim_job, read_death
from worker.processes.prewarmed import LAUNCHER_MODULE


def find_last_rank() -> psutil.Process:
    """The newest process that the launcher of this test's worker has started."""
    [launcher] = [one for one in psutil.Process().children() if LAUNCHER_MODULE in one.cmdline()]
    ranks = [one for one in launcher.children() if "spawn_main" in " ".join(one.cmdline())]
    return max(ranks, key=lambda one: one.pid)


@pytest.mark.slow
def test_the_death_of_a_rank_ends_the_attempt_and_names_it(
    settings: Settings, database: Database, store: ArtifactStore, models_folder: Path, tmp_path: Path
) -> None:
    here = settings.model_copy(update={"models_dir": models_folder, "cpu_ranks": 2})
    runner, lease = claim_job(here, database, store, tmp_path, {"gpus": 2})
    with running(runner, lease):
        wait_for(lambda: job_of(database, lease).step, "the first step")
        os.kill(find_last_rank().pid, signal.SIGKILL)

    assert "rank 1 of 2 was killed by signal 9 (SIGKILL)" in read_death(database, lease)

    runner.run(claim(database))

    assert job_of(database, lease).state == "succeeded"
