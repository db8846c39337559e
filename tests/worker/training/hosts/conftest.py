"""A cluster of two nodes for the tests of this folder, and jobs on it."""

from collections.abc import Callable, Iterator

import pytest

from tests.worker.training.conftest import Child
from tests.worker.training.hosts.cluster import RayCluster
from worker.processes.prewarmed import DRIVER_MODULE
from worker.processes.reports import TrainingRequest


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[RayCluster]:
    started = RayCluster()
    try:
        started.add_node()
        yield started
    finally:
        started.stop()


@pytest.fixture
def cluster(module_cluster: RayCluster) -> Iterator[RayCluster]:
    """The module's cluster. A node that a test killed is replaced after it, also where the test failed."""
    yield module_cluster
    module_cluster.replace_lost_nodes()


StartDriver = Callable[[TrainingRequest], Child]


@pytest.fixture
def start_driver(cluster: RayCluster) -> Iterator[StartDriver]:
    """Drivers that are gone, with their ranks, when the test is over."""
    children: list[Child] = []

    def start(request: TrainingRequest) -> Child:
        here = request.model_copy(update={"cpu_ranks": 2, "ray_address": cluster.address})
        children.append(Child(here, DRIVER_MODULE))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.close()
