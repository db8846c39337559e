"""The router of a mixture of experts: a module whose `weight` is a parameter, which it multiplies itself.

An adapter on this parameter, as PEFT makes for the usual targets of Qwen3-MoE and OLMoE, changes the product
in the midst of the module's own code.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WEIGHT = "weight"


class ReplacedProduct(TorchFunctionMode):
    """Within this context, `functional.linear` with one weight is another function of the input."""

    def __init__(self, weight: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._weight = weight
        self._product = product
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func is functional.linear and len(args) == 2 and args[1] is self._weight and not kwargs:
            self.count += 1
            return self._product(args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def find_router_obstacle(router: nn.Module) -> str | None:
    """Why the product of a router's weight can't be replaced, or None.

    Calls a copy of the router without values. It is of 16 bits: to float32, in which some families compute,
    its weight would be converted first, and is then another tensor.
    """
    name = type(router).__name__
    weight = router._parameters.get(WEIGHT)
    if weight is None or weight.ndim != 2:
        return f"no matrix {WEIGHT!r} in {name}"
    empty = copy.deepcopy(router).to(device="meta", dtype=torch.bfloat16)
    weight = empty.get_parameter(WEIGHT)
    x_NI = weight.new_empty(2, weight.shape[1])
    try:
        with ReplacedProduct(weight, lambda x: functional.linear(x, weight)) as replaced:
            empty(x_NI)
    # The module's own code may raise anything at an input of this shape.
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RuntimeError):
        return f"a router that needs more than its input ({name})"
    return None if replaced.count == 1 else f"a router that converts its weight ({name})"
