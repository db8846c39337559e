"""Experts of a mixture whose weights are stacked in two parameters, as transformers 5 holds them.

E: experts, H: hidden size, I: intermediate size. `gate_up_proj` is [E, 2I, H] and `down_proj` is [E, H, I].
"""

from torch import nn

GATE_UP, DOWN = "gate_up_proj", "down_proj"
PARAMETERS = (GATE_UP, DOWN)
# What transformers' `use_experts_implementation` writes into each module (seen in 5.17 and 5.23), with the
# values that the paged engine computes. The last one is new in 5.23.
_LAYOUT = {"has_gate": True, "has_bias": False, "is_transposed": False, "has_post_expert_norm": False}


def find_layout_obstacle(module: nn.Module) -> str | None:
    """Why the paged engine can't apply adapters to this module's weights, or None."""
    if not hasattr(module, "has_gate") or not hasattr(module, "_apply_gate"):
        return f"experts of its own kind ({type(module).__name__})"
    unlike = [name for name, value in _LAYOUT.items() if getattr(module, name, value) != value]
    if unlike:
        return f"experts of another layout ({type(module).__name__}: {', '.join(unlike)})"
    gate_up, down = (getattr(module, name, None) for name in PARAMETERS)
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter):
        return f"experts without {GATE_UP} and {DOWN}"
    if down.ndim != 3 or gate_up.shape != (down.shape[0], 2 * down.shape[2], down.shape[1]):
        return f"experts of another shape ({type(module).__name__})"
    return None
