"""Programmatic dependent launch: the programs of a kernel start while the last of the one before still run.

(CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".) On NVIDIA GPUs from compute
capability 9.0 on; elsewhere a kernel starts when the one before has ended.

A kernel that is launched with `options` calls `begin` first, or `launch_next` first and `wait` later. What it
reads before `wait` was written before the last kernel that was launched without `options`: weights, and what
stays the same during a forward pass. It writes nothing before.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

_FIRST_CAPABILITY = (9, 0)


def options(tensor: torch.Tensor) -> dict[str, Any]:
    """The compile-time argument `IS_DEPENDENT` and the launch option of a kernel on the tensor's device."""
    is_dependent = _is_supported(tensor.device)
    return {"IS_DEPENDENT": is_dependent, "launch_pdl": is_dependent}


@cache
def _is_supported(device: torch.device) -> bool:
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


@triton.jit
def begin(IS_DEPENDENT: tl.constexpr):
    """Let the next kernel start, and wait until those before have ended."""
    launch_next(IS_DEPENDENT)
    wait(IS_DEPENDENT)


@triton.jit
def launch_next(IS_DEPENDENT: tl.constexpr):
    """Let the next kernel start once all programs of this one have started: it waits where it must."""
    if IS_DEPENDENT:
        cuda.gdc_launch_dependents()


@triton.jit
def wait(IS_DEPENDENT: tl.constexpr):
    """Wait until the kernels before have ended and what they wrote can be read."""
    if IS_DEPENDENT:
        cuda.gdc_wait()
