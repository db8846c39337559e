"""Liger-Kernel's norms, rotary embeddings and SwiGLU in a model of a supported family, until they are undone.

Liger's losses are not used, since TRL has its own. Liger replaces functions, classes and methods in the
model's modules and in the family's module of transformers; all replaced attributes are restored afterwards.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel

_MISSING = object()


@contextmanager
def applied(model: PeftModel) -> Iterator[None]:
    """Within this context the base model computes with Liger's kernels."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    # Liger warns of every backend whose package is not installed.
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
    base = model.get_base_model()
    # Copies of the namespaces, to find what Liger replaces in them.
    namespaces = [vars(sys.modules[type(base).__module__]), *(vars(module) for module in base.modules())]
    before = [dict(names) for names in namespaces]
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


def _restore(names: dict[str, Any], old: dict[str, Any]) -> None:
    for name, value in old.items():
        if value is _MISSING:
            names.pop(name, None)
        else:
            names[name] = value
