"""Copies of a model's modules on the same weights: PEFT changes a copy, and the model stays as it is.

Each adapter has a copy of its own. So any number of adapters exist at once, whatever PEFT does to its modules
(biases that it overwrites, parameters that it wraps, modules that it replaces), the base model generates
without any of it, and an adapter is unloaded by dropping its copy.
"""

import copy
from collections.abc import Collection

from bitsandbytes.functional import QuantState
from torch import nn
from transformers import PreTrainedModel


def copy_modules(model: PreTrainedModel, *, own: Collection[str] = ()) -> PreTrainedModel:
    """A copy of the model's modules and settings with the same tensors, except the parameters named in `own`.

    Those are copied: they may be written to.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        # The scales of 4-bit weights.
        states = [value for value in vars(module).values() if isinstance(value, QuantState)]
        memo |= {id(one): one for one in [*tensors, *states] if one is not None}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in own:
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    return copy.deepcopy(model, memo)
