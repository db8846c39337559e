"""Runs a job over several hosts: `python -m worker.training.hosts.driver <report_fd>`.

It is the worker's child, and a driver of the Ray cluster of which the worker's host is a node. Ray Train's
TorchTrainer places a rank on each GPU, lets them meet, and ends all when one dies. This module passes rank
0's reports on and a stop to the ranks, and writes into the job's folder what rank 0 wrote on its own host.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

# Before Ray reads them. The worker starts attempts, and Ray none again; each is in folders of its own.
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
os.environ["RAY_TRAIN_METRICS_ENABLED"] = "0"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from app.core.errors.jobs import ClusterUnfit
from app.core.jobs.events import Log, Warn
from worker.processes.child import ParentLink
from worker.processes.reports import Ended, Happened, Outcome, Report, TrainingRequest, report_adapter
from worker.training.failures import explain
from worker.training.hosts.cluster_resources import check_cluster, describe_lack
from worker.training.hosts.files import FileMessage, FolderReceiver
from worker.training.hosts.host_rank import OUTPUT, Joined, OneGpuEach, RankFailed, run_host_rank
from worker.training.hosts.inputs import JobInputs
from worker.training.hosts.mailbox import Mailbox
from worker.training.ranks.launcher import choose_ending
from worker.training.ranks.world import TIMEOUT, name_backend

_RETRY_SECONDS = 5.0


def main() -> None:
    """Run the attempt that the request on standard input describes; status 1: a rank died."""
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(TrainingRequest)
    _end(Driver(request, link).run())


class Driver:
    """One attempt at a job over several hosts."""

    def __init__(self, request: TrainingRequest, link: ParentLink) -> None:
        self._request = request
        self._link = link
        self._mailbox: Mailbox | None = None
        self._has_begun = threading.Event()
        self._hosts: dict[int, str] = {}
        self._endings: dict[int, Ended] = {}
        self._job_files = FolderReceiver(request.job_folder)
        self._output = FolderReceiver(request.output_folder.parent)

    def run(self) -> int:
        """Run all ranks to their end; returns the exit status. Prints which rank died, as its last line."""
        self._link.watch(on_stop=self._stop)
        resources = self._request.spec.resources
        try:
            self._connect()
            is_cuda = check_cluster(resources, ray.nodes(), cpu_ranks=self._request.cpu_ranks)
        except ClusterUnfit as error:
            self._link.send(explain(error))
            return 0
        if lack := describe_lack(resources, ray.nodes(), ray.available_resources(), is_cuda=is_cuda):
            self._link.send(Happened(event=Warn(code="waits_for_hosts", message=lack)))
        self._mailbox = Mailbox()
        reader = threading.Thread(target=self._read, args=(self._mailbox,), name="rank-reports")
        reader.start()
        failure = self._train(self._mailbox, is_cuda=is_cuda)
        self._mailbox.close()
        reader.join()
        self._job_files.drop_incomplete()
        if ended := choose_ending(self._endings, resources.ranks):
            self._link.send(ended)
            return 0
        ray.shutdown()  # what the ranks have printed comes first
        print(describe_death(failure, self._hosts, resources.ranks), file=sys.stderr)
        return 1

    def _connect(self) -> None:
        """Wait until the cluster can be reached. Raises ClusterUnfit where that can't help."""
        address, said = self._request.ray_address, ""
        while True:
            try:
                ray.init(address=address, log_to_driver=True, logging_level="warning")
                return
            except (ConnectionError, RuntimeError, ValueError) as error:
                if isinstance(error, ValueError) or "Version mismatch" in str(error):
                    raise ClusterUnfit(
                        f"The Ray cluster at {address} can't be used: {error}",
                        hint="TUNESMITH_RAY_ADDRESS is that of the cluster's head, as 10.0.0.1:6379; all "
                        "nodes and the worker have the same Ray and Python.",
                    ) from error
                message = (
                    f"The Ray cluster at {address} can't be reached from here yet: {error} It may be away, "
                    "or no node of it runs on the worker's host (`ray start --address=…`)."
                )
                if message != said:
                    self._link.send(Happened(event=Warn(code="waits_for_hosts", message=message)))
                said = message
            ray.shutdown()
            threading.Event().wait(_RETRY_SECONDS)

    def _train(self, mailbox: Mailbox, *, is_cuda: bool) -> TrainingFailedError | None:
        """Run the ranks; returns the failure of those that died."""
        resources = self._request.spec.resources
        # Ray Train keeps nothing there: checkpoints are the job's.
        with tempfile.TemporaryDirectory(prefix="tunesmith-ray-") as storage:
            trainer = TorchTrainer(
                run_host_rank,
                train_loop_config={
                    "request": self._request.model_dump_json(),
                    "inputs": JobInputs.put(self._request),
                    "mailbox": mailbox.actor,
                },
                torch_config=OneGpuEach(
                    backend=name_backend(is_cuda=is_cuda), timeout_s=int(TIMEOUT.total_seconds())
                ),
                scaling_config=ScalingConfig(
                    num_workers=resources.ranks,
                    use_gpu=is_cuda,
                    resources_per_worker={"CPU": 1, "GPU": 1} if is_cuda else {"CPU": 1},
                    # Ray has no strategy for several ranks on each of several hosts: it fills hosts then.
                    placement_strategy="STRICT_SPREAD" if resources.gpus == 1 else "PACK",
                ),
                run_config=RunConfig(
                    name=self._request.job_id,
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=0),
                ),
            )
            try:
                trainer.fit()
            except TrainingFailedError as error:
                return error
        return None

    def _read(self, mailbox: Mailbox) -> None:
        """Pass messages on until the mailbox is closed."""
        while (item := mailbox.take()) is not None:
            rank, message = item
            try:
                self._receive(rank, message)
            except OSError as error:  # this host's disk is full, say
                self._link.send(explain(error))
                _end(0)

    def _receive(self, rank: int, message: Joined | FileMessage | bytes) -> None:
        if isinstance(message, Joined):
            self._hosts[rank] = message.host
            if len(self._hosts) == self._request.spec.resources.ranks:
                hosts = ", ".join(self._hosts[one] for one in sorted(self._hosts))
                self._link.send(Happened(event=Log(message=f"The ranks of the job are on {hosts}.")))
        elif isinstance(message, bytes):
            self._has_begun.set()
            report: Report = report_adapter.validate_json(message)
            if isinstance(report, Ended):
                self._endings[rank] = report
            else:
                self._link.send(report)
        elif message.unit == OUTPUT:
            name = self._request.output_folder.name
            self._output.receive(replace(message, unit=name))
        else:
            self._job_files.receive(message)

    def _stop(self) -> None:
        """Ask the ranks to stop; where they have not begun, there is nothing to save."""
        if self._mailbox is None or not self._has_begun.is_set():
            self._link.send(Ended(outcome=Outcome.STOPPED))
            _end(0)
        self._mailbox.ask_to_stop()


def describe_death(failure: TrainingFailedError | None, hosts: Mapping[int, str], size: int) -> str:
    """Which rank died, in a sentence."""
    if failure is None:
        return "The ranks ended without a report."
    failures = dict(getattr(failure, "worker_failures", {}))
    # A rank that has lost another may notice it before Ray does.
    died = {rank: error for rank, error in failures.items() if not isinstance(error, RankFailed)} or failures
    if not died:
        return " ".join(str(failure).split())[:500]
    rank = min(died)
    on = f" on {hosts[rank]}" if rank in hosts else ""
    return f"rank {rank} of {size}{on} died: {_name_cause(died[rank])}"


def _name_cause(error: BaseException) -> str:
    cause = getattr(error, "health_check_failure", None) or error
    if isinstance(cause, ActorUnavailableError):
        return "it can't be reached; its host may be gone"
    if isinstance(cause, ActorDiedError):
        return "its process was killed, or ended by itself; its host may have run out of memory"
    return " ".join(str(cause).split())[:300]


def _end(status: int) -> NoReturn:
    """End the process; Ray ends what it has started."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
