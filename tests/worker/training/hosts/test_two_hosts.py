"""Jobs on two nodes of a Ray cluster, and what ends them: a stop, the death of a node or of the driver."""

import os
import signal
from typing import Any

import psutil
import pytest

from app.core.jobs.events import Checkpoint, Log, Metrics, Warn
from tests.worker.training.conftest import (
    Child,
    MakeRequest,
    StartRanks,
    following,
    make_rows,
    run_here,
)
from tests.worker.training.hosts.cluster import RayCluster
from tests.worker.training.hosts.conftest import StartDriver
from tests.worker.training.ranks.outcomes import (
    assert_equal_weights,
    read_death,
    read_resumed,
    read_the_same,
    read_to_checkpoint,
)
from worker.processes.reports import CheckpointAdapterSaved, Happened, Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BASE: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2, "seed": 3}


def read_until(child: Child, kind: type[Any]) -> None:
    """Read reports up to the first event of a kind."""
    for report in child.read():
        if isinstance(report, Happened) and isinstance(report.event, kind):
            return
    raise AssertionError(child.process.log_tail())


def test_two_hosts_learn_as_one_process_with_twice_the_accumulation(
    make_request: MakeRequest, start_driver: StartDriver, cluster: RayCluster
) -> None:
    training = {**BASE, "optim": "sgd", "per_device_train_batch_size": 2, "num_train_epochs": 2}
    training |= {"validation_split": 0.2, "eval_steps": 2, "keep_checkpoints": 1}
    common: dict[str, Any] = {"rows": make_rows(14), "lora": {"r": 4, "dropout": 0.0}}
    one = make_request("one", **common, training={**training, "gradient_accumulation_steps": 4})
    two = make_request(
        "two", **common, training={**training, "gradient_accumulation_steps": 2}, resources={"nodes": 2}
    )

    alone = run_here(one)
    together = read_the_same(start_driver(two), two, alone, one)
    # What rank 0 wrote on its own host is here, and nothing of the job is left there.
    found = [{path.name for path in (one.job_folder / "checkpoints").iterdir()} for one in (two, one)]
    assert found[0] == found[1]
    assert list((two.job_folder / "tensorboard").glob("events.*"))
    [kept] = [report for report in together if isinstance(report, CheckpointAdapterSaved)]
    assert kept.folder.is_relative_to(two.job_folder)
    assert (kept.folder / "adapter_model.safetensors").is_file()
    assert [path for node in cluster.nodes for path in node.data_dir.glob("scratch/*")] == []


def test_the_end_of_a_node_is_named_and_the_next_attempt_resumes_exactly(
    make_request: MakeRequest, start_driver: StartDriver, start_ranks: StartRanks, cluster: RayCluster
) -> None:
    spec: dict[str, Any] = {"rows": make_rows(10), "lora": {"r": 4, "dropout": 0.1}}
    # Long enough that the node is gone before the last step, however late its checkpoint is reported.
    spec["training"] = {**BASE, "max_steps": 40, "save_steps": 4, "per_device_train_batch_size": 2}
    undisturbed = make_request("undisturbed", **spec, resources={"gpus": 2})
    disturbed = make_request("disturbed", **spec, resources={"nodes": 2})
    assert start_ranks(undisturbed).read_to_end().ended.outcome is Outcome.FINISHED

    child = start_driver(disturbed)
    read_to_checkpoint(child, 4)
    cluster.nodes[-1].kill()
    assert "of 2 on " in read_death(child)
    assert child.process.log_tail().strip().splitlines()[-1].startswith("rank ")

    cluster.replace_lost_nodes()
    read_resumed(start_driver(following(disturbed, child.reports)))

    assert_equal_weights(disturbed, undisturbed)


def test_hosts_stop_together_with_a_checkpoint(make_request: MakeRequest, start_driver: StartDriver) -> None:
    request = make_request(training={**BASE, "max_steps": 500, "save_steps": 1000}, resources={"nodes": 2})
    child = start_driver(request)
    read_until(child, Metrics)

    child.process.ask_to_stop()
    reports = child.read_to_end()

    assert reports.ended.outcome is Outcome.STOPPED
    assert child.process.wait(60) == 0
    step = reports.events(Checkpoint)[-1].step
    assert (request.job_folder / "checkpoints" / f"checkpoint-{step}" / "manifest.json").is_file()


def test_ranks_die_with_their_driver(
    make_request: MakeRequest, start_driver: StartDriver, cluster: RayCluster
) -> None:
    child = start_driver(make_request(training={**BASE, "max_steps": 5000}, resources={"nodes": 2}))
    read_until(child, Metrics)
    ranks = cluster.find_ranks()

    os.kill(child.process.pid, signal.SIGKILL)

    assert len(ranks) == 2
    _gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert alive == []


def test_a_job_waits_for_hosts_says_so_and_can_be_stopped(
    make_request: MakeRequest, start_driver: StartDriver
) -> None:
    child = start_driver(make_request(resources={"nodes": 3}))
    read_until(child, Warn)

    child.process.ask_to_stop()
    reports = child.read_to_end()

    [warning] = reports.events(Warn)
    assert warning.code == "waits_for_hosts"
    assert "asks for 3 hosts" in warning.message
    assert "has 2" in warning.message
    assert reports.events(Log) == []
    assert reports.ended.outcome is Outcome.STOPPED
    assert child.process.wait(60) == 0
