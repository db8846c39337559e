"""Adds up the gradients of all ranks, once a step, when each has finished its passes.

Not in the backward pass, as DistributedDataParallel does it: a rank that runs out of memory there repeats its
step, while the others would wait for it within theirs. Only the adapter's gradients are exchanged.
"""

from collections.abc import Iterator, Sequence

import torch

from worker.training.ranks.world import World

# Numbers that are exchanged at a time: a copy of so many is made.
_BUCKET = 1 << 24


def add_up_gradients(parameters: Sequence[torch.nn.Parameter], world: World, *, scale: float = 1.0) -> None:
    """Replace the gradients by their sums over all ranks, each multiplied by its rank's `scale` before.

    A parameter that has a gradient on no rank gets none, as in a single process.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has_gradient = world.gather_numbers([parameter.grad is not None for parameter in trained])
    for parameter, anywhere in zip(trained, map(any, zip(*has_gradient, strict=True)), strict=True):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    for bucket in _fill_buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        world.add_up(flat if scale == 1.0 else flat.mul_(scale))
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _fill_buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in order, those of a bucket of one type."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        is_full = sum(one.numel() for one in bucket) + gradient.numel() > _BUCKET
        if bucket and (is_full or bucket[0].dtype is not gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
