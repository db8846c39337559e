"""A router of a mixture of experts, whose own code multiplies its weight, as one of the linear layers."""

from collections.abc import Callable
from typing import Any

from torch import nn

from worker.inference.model.linears import MergedLinears
from worker.models.routers import WEIGHT, ReplacedProduct


def merge_router(name: str, router: nn.Module, *, is_needed: Callable[[], bool]) -> MergedLinears:
    """A group of one layer with the router's weight, which computes the product in the router's `forward`.

    `is_needed`: whether it does so in the step that is computed now.
    """
    weight = router.get_parameter(WEIGHT)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight
    group = MergedLinears([name], [linear])
    own_forward, product = router.forward, group.compute_alone

    def forward(*args: Any, **options: Any) -> Any:
        if not is_needed():
            return own_forward(*args, **options)
        with ReplacedProduct(weight, product):
            return own_forward(*args, **options)

    router.forward = forward
    return group
