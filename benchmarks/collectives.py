"""How long the ranks of a profiled step exchanged tensors and numbers.

On a GPU these are NCCL's kernels, and what gloo exchanges between the processes; on a CPU gloo alone. A
collective lasts until the slowest rank has joined it, so waiting counts.
"""

from collections.abc import Iterable, Sequence

import torch
from torch.autograd.profiler_util import FunctionEvent

# (start, end), in microseconds
Interval = tuple[float, float]
# In the names of NCCL's kernels; the beginning of what gloo records.
_NCCL, _GLOO = "nccl", "gloo:"
# Operators that begin a collective and do not compute.
_LAUNCHES = "c10d::"


def measure_collectives(events: Iterable[FunctionEvent], *, is_cuda: bool) -> dict[str, float]:
    """Milliseconds in which at least one collective ran, and in how many of them nothing was computed."""
    collectives, computing = [], []
    for event in events:
        interval = (event.time_range.start, event.time_range.end)
        if _is_collective(event):
            collectives.append(interval)
        elif _computes(event, is_cuda=is_cuda):
            computing.append(interval)
    exchanged = unite(collectives)
    hidden = sum(map(_length, _intersect(exchanged, unite(computing))))
    total = sum(map(_length, exchanged))
    return {
        "collectives_ms": round(total / 1e3, 3),
        "exposed_collectives_ms": round((total - hidden) / 1e3, 3),
    }


def unite(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as intervals in order that do not overlap."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _is_collective(event: FunctionEvent) -> bool:
    if event.device_type == torch.autograd.DeviceType.CUDA:
        return _NCCL in event.name and not _is_named_range(event)
    return bool(event.name.startswith(_GLOO))


def _computes(event: FunctionEvent, *, is_cuda: bool) -> bool:
    if _is_named_range(event):
        return False
    if is_cuda:
        return bool(event.device_type == torch.autograd.DeviceType.CUDA)
    # Operators that call no others: what calls some may wait in between.
    return not event.cpu_children and not event.name.startswith(_LAUNCHES)


def _is_named_range(event: FunctionEvent) -> bool:
    """Whether it covers kernels, and what they wait for on their stream."""
    return bool(getattr(event, "is_user_annotation", False))


def _intersect(one: Sequence[Interval], other: Sequence[Interval]) -> Iterable[Interval]:
    """The times that are in both, of intervals in order that do not overlap."""
    place = 0
    for start, end in one:
        while place < len(other) and other[place][1] <= start:
            place += 1
        at = place
        while at < len(other) and other[at][0] < end:
            yield max(start, other[at][0]), min(end, other[at][1])
            at += 1


def _length(interval: Interval) -> float:
    return interval[1] - interval[0]
