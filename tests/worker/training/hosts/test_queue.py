"""A job over two hosts through the queue: a rank is killed, and the next attempt ends the job."""

from pathlib import Path

import pytest

from app.core.jobs import events
from app.core.jobs.events import Warn
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.waiting import wait_for
from tests.worker.runners.job_runs import claim, job_of
from tests.worker.runners.test_jobs import running
from tests.worker.training.hosts.cluster import RayCluster
from tests.worker.training.ranks.through_queue import claim_job, read_death


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_death_of_a_rank_ends_the_attempt_and_the_next_one_resumes(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    models_folder: Path,
    tmp_path: Path,
    cluster: RayCluster,
) -> None:
    changes = {"models_dir": models_folder, "cpu_ranks": 2, "ray_address": cluster.address}
    here = settings.model_copy(update=changes)
    runner, lease = claim_job(here, database, store, tmp_path, {"nodes": 2})
    assert lease.gpus == 0
    with running(runner, lease):
        wait_for(lambda: (job_of(database, lease).step or 0) >= 5, "a checkpoint")
        cluster.nodes[1].find_ranks()[0].kill()

    assert " of 2 on " in read_death(database, lease)

    runner.run(claim(database))

    assert job_of(database, lease).state == "succeeded"
    with database.snapshot() as session:
        warnings = [event.data for event in events.read(session, lease.job_id, limit=1000, types=["warning"])]
    codes = [warning.code for warning in warnings if isinstance(warning, Warn)]
    assert "resumed_earlier" not in codes
