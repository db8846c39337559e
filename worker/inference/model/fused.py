"""Replaces small steps of a model's own code by fused kernels: RMSNorm, rotary embedding, SwiGLU.

A kernel is used only where it gives on random input what the model's own code gives, so a family with another
kind of norm, embedding or activation keeps its own. CUDA only.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from worker.kernels import norm, rotary, swiglu

# How far results that are rounded differently may be apart, relative to the largest value.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_ROTATE = "apply_rotary_pos_emb"

Tensors = tuple[torch.Tensor, ...]
_log = logging.getLogger(__name__)


@torch.inference_mode()
def install(model: PreTrainedModel) -> ExitStack:
    """Replace what can be replaced. Returns what undoes it."""
    replaced, undo = set(), ExitStack()
    for module in model.modules():
        found = _norm(module) or _swiglu(module)
        if found is not None and _same(module.forward, found, _inputs(module, model)):
            undo.callback(vars(module).pop, "forward", None)
            module.forward = found
            replaced.add(type(module).__name__)
    if _install_rotation(model, undo):
        replaced.add(_ROTATE)
    _log.info("Kernels in the place of %s", ", ".join(sorted(replaced)) or "nothing")
    return undo


def _norm(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None or weight.ndim != 1:
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        normed, _factor = norm.rms_norm_and_scale(x.reshape(-1, x.shape[-1]), weight, epsilon)
        return normed.view(x.shape)

    return forward


def _swiglu(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    is_silu = type(getattr(module, "act_fn", None)).__name__ in {"SiLU", "SiLUActivation"}
    if not is_silu or not all(isinstance(part, nn.Linear) for part in parts):
        return None
    gate, up, down = parts

    def forward(x: torch.Tensor) -> torch.Tensor:
        assert gate is not None
        assert up is not None
        assert down is not None
        gate_x, up_x = gate(x), up(x)
        active = swiglu.activate(gate_x.flatten(0, -2), up_x.flatten(0, -2))
        output: torch.Tensor = down(active.view(*x.shape[:-1], -1))
        return output

    return forward


def _inputs(module: nn.Module, model: PreTrainedModel) -> Tensors:
    gate = getattr(module, "gate_proj", None)
    width = module.get_parameter("weight").shape[0] if gate is None else gate.in_features
    return (torch.randn(1, 3, width, dtype=model.dtype, device=model.device),)


def _install_rotation(model: PreTrainedModel, undo: ExitStack) -> bool:
    """Replace the function in the Python module where the model's attention looks it up."""
    attentions = [module for module in model.modules() if hasattr(module, "layer_idx")]
    homes = {sys.modules[type(module).__module__] for module in attentions}
    homes = {home for home in homes if hasattr(home, _ROTATE)}
    dimensions = {
        head_dim for module in attentions if isinstance(head_dim := getattr(module, "head_dim", None), int)
    }
    if len(homes) != 1 or len(dimensions) != 1:
        return False
    (home,), (dimension,) = homes, dimensions
    own = getattr(home, _ROTATE)
    if hasattr(own, "replaces"):
        own = own.replaces
    angles = torch.randn(1, 3, dimension // 2, device=model.device).repeat(1, 1, 2)
    states = (
        torch.randn(1, 3, heads, dimension, dtype=model.dtype, device=model.device).transpose(1, 2)
        for heads in (4, 2)
    )
    inputs = (*states, angles.cos().to(model.dtype), angles.sin().to(model.dtype))
    rotate = _rotation(own)
    if not _same(own, rotate, inputs):
        return False
    undo.callback(setattr, home, _ROTATE, getattr(home, _ROTATE))
    setattr(home, _ROTATE, rotate)
    return True


def _rotation(own: Callable[..., Tensors]) -> Callable[..., Tensors]:
    def rotate(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *others: object,
        **named: object,
    ) -> Tensors:
        plain = q.is_cuda and len(q) == 1 and cos.shape == (1, q.shape[2], q.shape[3])
        if not plain or others or named.get("unsqueeze_dim", 1) != 1:
            return own(q, k, cos, sin, *others, **named)
        rotated = rotary.rotate(q[0], k[0], cos[0].contiguous(), sin[0].contiguous())
        return rotated[0][None], rotated[1][None]

    rotate.replaces = own  # type: ignore[attr-defined]
    return rotate


def _same(own: Callable[..., object], other: Callable[..., object], inputs: Tensors) -> bool:
    """Whether both return the same; False also where one can't be called with these inputs."""
    try:
        outputs = [_as_tuple(function(*inputs)) for function in (own, other)]
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE[a.dtype] * float(a.abs().max())
        for a, b in zip(*outputs, strict=True)
    )


def _as_tuple(output: Any) -> Tensors:
    return output if isinstance(output, tuple) else (output,)
