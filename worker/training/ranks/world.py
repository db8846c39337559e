"""The processes of a job over several devices, and how they exchange numbers, decisions and tensors.

Knows no trainer. transformers and accelerate do not know of the other processes: each process runs a trainer
for itself, and whatever is exchanged is exchanged here (decision 51).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")

# Rank 0 downloads, evaluates and generates while the others wait; a death is noticed by the launcher.
TIMEOUT = timedelta(days=7)


class RankLost(Exception):
    """Another process of the job is gone or can't be reached."""


@dataclass(frozen=True)
class World:
    """All processes of a job; of a job on one device, that one, which exchanges nothing.

    Every method that exchanges something must be called by all ranks in the same order. Each raises RankLost.
    """

    rank: int = 0
    size: int = 1
    # Each rank holds a part of the base model, so that all must make the same passes (divided_base.py).
    divides_base: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which reports and writes all files."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether the job has one process only."""
        return self.size == 1

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        if self.is_alone:
            return [value]
        found: list[Value] = [value] * self.size
        _exchange(lambda: distributed.all_gather_object(found, value))
        return found

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """As `gather`, for so many numbers of each rank; faster."""
        if self.is_alone:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        _exchange(lambda: distributed.all_gather(found, mine))
        return [one.tolist() for one in found]

    def from_first(self, value: Value) -> Value:
        """The value that rank 0 passes."""
        return self.gather(value)[0]

    def find_first(self, value: Value | None) -> Value | None:
        """The value of the first rank that has one."""
        return next((one for one in self.gather(value) if one is not None), None)

    def any(self, flag: bool) -> bool:
        """Whether the flag of any rank is true."""
        return any(numbers[0] for numbers in self.gather_numbers([flag]))

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by the sum of those of all ranks, the same bytes on each. Returns it."""
        if not self.is_alone:
            _exchange(lambda: distributed.all_reduce(tensor))
        return tensor

    def leave(self) -> "World":
        """End the exchange, on all ranks at once, and free its memory; returns a world of this rank alone."""
        if not self.is_alone:
            distributed.destroy_process_group()
        return World(self.rank, 1)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The ranks pass through the context one after the other."""
        for _ in range(self.rank):
            self.gather_numbers([])
        yield
        for _ in range(self.rank, self.size):
            self.gather_numbers([])

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Rank 0 passes through the context before the others do, so that these find the files it wrote."""
        if not self.is_first:
            self.gather_numbers([])
        yield
        if self.is_first:
            self.gather_numbers([])


ALONE = World()


def join_world(rank: int, size: int, *, is_cuda: bool) -> World:
    """Meet the other ranks at the address that torch's launcher has put into the environment.

    Does no more where they have met already, as Ray's do.
    """
    if not distributed.is_initialized():
        backend = name_backend(is_cuda=is_cuda)
        _exchange(
            lambda: distributed.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT),
        )
    return World(rank, size)


def name_backend(*, is_cuda: bool) -> str:
    """How ranks exchange: numbers and decisions by gloo, tensors of a GPU by NCCL."""
    return "cpu:gloo,cuda:nccl" if is_cuda else "gloo"


def _exchange(act: Callable[[], object]) -> None:
    try:
        act()
    except RuntimeError as error:  # gloo has no class of its own for a lost connection
        raise RankLost(str(error)) from error
