"""Liger-Kernel's norms, rotary embeddings and SwiGLU in a model of a supported family, until they are undone.

Liger's losses are not used, since the trainer computes its own. Liger replaces functions, classes and methods
in the model's modules and in the family's module of transformers; all replaced attributes are restored
afterwards.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from torch import nn

_MISSING = object()


def has_adapted_experts(model: PeftModel) -> bool:
    """Whether adapters are on the weights of a mixture's experts."""
    return any(isinstance(module, ParamWrapper) for module in model.modules())


@contextmanager
def applied(model: PeftModel, *, with_experts: bool = True) -> Iterator[None]:
    """Within this context the base model computes with Liger's kernels.

    `with_experts`: experts whose weights have adapters, too.
    """
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    # Liger warns of every backend whose package is not installed.
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
    base = model.get_base_model()
    # Copies of the namespaces, to find what Liger replaces in them.
    namespaces = [vars(sys.modules[type(base).__module__]), *(vars(module) for module in base.modules())]
    before = [dict(names) for names in namespaces]
    with _beneath_adapters(with_experts=with_experts):
        _apply_liger_kernel_to_instance(model=base, cross_entropy=False, fused_linear_cross_entropy=False)
    replaced = [
        {name: old.get(name, _MISSING) for name, value in new.items() if old.get(name, _MISSING) is not value}
        for old, new in zip(before, namespaces, strict=True)
    ]
    try:
        yield
    finally:
        for names, old in zip(namespaces, replaced, strict=True):
            _restore(names, old)


@contextmanager
def _beneath_adapters(*, with_experts: bool) -> Iterator[None]:
    """Let Liger replace the experts' own `forward` (liger-kernel 0.8.5), and not that of PEFT's wrapper.

    The wrapper adds the adapter to the weights that the experts read while they compute.
    """
    from liger_kernel.transformers import monkey_patch

    original = monkey_patch._patch_swiglu_module

    def replace(module: nn.Module, replacement: type[nn.Module]) -> None:
        if not isinstance(module, ParamWrapper):
            original(module, replacement)
        elif with_experts:
            original(module.get_base_layer(), replacement)

    monkey_patch._patch_swiglu_module = replace
    try:
        yield
    finally:
        monkey_patch._patch_swiglu_module = original


def _restore(names: dict[str, Any], old: dict[str, Any]) -> None:
    for name, value in old.items():
        if value is _MISSING:
            names.pop(name, None)
        else:
            names[name] = value
