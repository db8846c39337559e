"""What a Ray cluster lacks for a job, and whether its ranks are on GPUs."""

from typing import Any

import pytest

from app.core.errors.jobs import ClusterUnfit
from app.core.specs.resources import ResourcesSpec
from worker.training.hosts.cluster_resources import check_cluster, describe_lack


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("resources", "nodes", "free", "said"),
    [
        ({"nodes": 2}, [node(GPU=1), node(GPU=1)], 2, None),
        ({"nodes": 2}, [node(GPU=8), node(CPU=8)], 8, "asks for 2 hosts with GPUs; the Ray cluster has 1"),
        ({"nodes": 2}, [node(GPU=1), node(GPU=1, alive=False)], 1, "the Ray cluster has 1"),
        ({"nodes": 2, "gpus": 4}, [node(GPU=4), node(GPU=2)], 6, "asks for 8 GPUs; the Ray cluster has 6"),
        ({"nodes": 2, "gpus": 4}, [node(GPU=4), node(GPU=4)], 3, "asks for 8 GPUs; 3 of the Ray cluster"),
        ({"nodes": 2, "gpus": 4}, [node(GPU=8)], 8, None),
    ],
)
def test_what_a_job_waits_for_is_said(
    resources: dict[str, int], nodes: list[dict[str, Any]], free: float, said: str | None
) -> None:
    lack = describe_lack(ResourcesSpec(**resources), nodes, {"GPU": free}, is_cuda=True)
    assert lack is None if said is None else said in (lack or "")


def test_ranks_are_on_the_cpu_only_where_that_is_wanted_and_no_node_has_a_gpu() -> None:
    two = ResourcesSpec(nodes=2)
    assert check_cluster(two, [node(CPU=4)], cpu_ranks=1)
    assert check_cluster(two, [node(CPU=4), node(GPU=1)], cpu_ranks=2)
    assert not check_cluster(two, [node(CPU=4)], cpu_ranks=2)
    with pytest.raises(ClusterUnfit, match="asks for 3 GPUs of each host"):
        check_cluster(ResourcesSpec(nodes=2, gpus=3), [node(CPU=4)], cpu_ranks=2)
