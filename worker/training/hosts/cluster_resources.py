"""What a Ray cluster has for a job over several hosts, and what the job waits for there. Knows no Ray.

`nodes` and `available` are as `ray.nodes()` and `ray.available_resources()` return them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.errors.jobs import ClusterUnfit
from app.core.specs.resources import ResourcesSpec


def check_cluster(resources: ResourcesSpec, nodes: Sequence[Mapping[str, Any]], *, cpu_ranks: int) -> bool:
    """Whether the ranks are on GPUs, or on the CPU. Raises ClusterUnfit where they can't be on the CPU.

    A cluster that grows on demand may get its GPUs later.
    """
    if cpu_ranks < 2 or any(node["Alive"] and node["Resources"].get("GPU") for node in nodes):
        return True
    if resources.gpus > cpu_ranks:
        raise ClusterUnfit(
            f"The job asks for {resources.gpus} GPUs of each host, and the Ray cluster has none.",
            hint="Lower resources.gpus, or raise TUNESMITH_CPU_RANKS: ranks are on the CPU then.",
        )
    return False


def describe_lack(
    resources: ResourcesSpec,
    nodes: Sequence[Mapping[str, Any]],
    available: Mapping[str, float],
    *,
    is_cuda: bool,
) -> str | None:
    """What the job waits for in the cluster, as a sentence; None where all of it is free."""
    unit, kind = ("GPU", "GPUs") if is_cuda else ("CPU", "processors")
    hosts = [node for node in nodes if node["Alive"] and node["Resources"].get(unit, 0) >= 1]
    total = round(sum(node["Resources"][unit] for node in hosts))
    free = int(available.get(unit, 0))
    if resources.gpus == 1 and len(hosts) < resources.nodes:
        asked = f"The job asks for {resources.nodes} hosts with {kind}"
        return f"{asked}; the Ray cluster has {len(hosts)}. It waits."
    if total < resources.ranks:
        return f"The job asks for {resources.ranks} {kind}; the Ray cluster has {total}. It waits."
    if free < resources.ranks:
        return f"The job asks for {resources.ranks} {kind}; {free} of the Ray cluster are free. It waits."
    return None
