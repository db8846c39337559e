"""LoRA on the stacked weights of experts, unpacked from the layout in which PEFT saves it.

Shape letters: E experts, R rank of one expert, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch

from worker.models.fused_experts import DOWN, GATE_UP, PARAMETERS
from worker.models.peft_adapters import LoraUpdate, PeftConfig

_NESTED = ".base_layer"
# The module that holds them in every family of transformers, where a target names none.
_HOLDER = "experts"


@dataclass(frozen=True)
class ExpertPair:
    """The update of one parameter: for each expert, x · A_RIᵀ · B_RO. B contains the scale."""

    A_ERI: torch.Tensor
    B_ERO: torch.Tensor

    @property
    def rank(self) -> int:
        """R."""
        return self.A_ERI.shape[1]


def holder_of(module: str) -> str:
    """The module in the base model for a name in the file.

    PEFT nests a wrapper for each parameter of a module, the inner ones under the name `base_layer`.
    """
    while module.endswith(_NESTED):
        module = module.removesuffix(_NESTED)
    return module


def find_holders(config: PeftConfig, modules: list[str]) -> dict[str, list[str]]:
    """The parameters that an adapter targets, by the module that holds them; for modules in the file."""
    targets: list[str] = config.settings.get("target_parameters") or []
    found: dict[str, list[str]] = {}
    for module in map(holder_of, modules):
        for target in targets:
            suffix, _, parameter = target.rpartition(".")
            if f".{module}".endswith(f".{suffix or _HOLDER}") and parameter not in found.get(module, []):
                found.setdefault(module, []).append(parameter)
    return found


def unpack_pairs(
    config: PeftConfig, holder: str, parameters: list[str], updates: dict[str, LoraUpdate]
) -> dict[str, ExpertPair] | None:
    """The pairs of the parameters of one module, by the parameters' names; None for another layout.

    `updates`: those of the module in the file, whose names differ by how deep they are nested. PEFT wraps
    parameters in the order in which the module has them, so that of `gate_up_proj` is the innermost.
    """
    if set(parameters) - set(PARAMETERS) or len(parameters) != len(updates):
        return None
    innermost_first = [updates[name] for name in sorted(updates, key=len, reverse=True)]
    pairs = {
        f"{holder}.{parameter}": _unpack(config, f"{holder}.{parameter}", update)
        for parameter, update in zip(
            [one for one in (GATE_UP, DOWN) if one in parameters], innermost_first, strict=True
        )
    }
    return {name: pair for name, pair in pairs.items() if pair} if all(pairs.values()) else None


def _unpack(config: PeftConfig, name: str, update: LoraUpdate) -> ExpertPair | None:
    """A is [E · R, I] with the experts outside, B is [O, R · E] with the experts inside.

    As in `ParamWrapper.get_delta_weight` of PEFT 0.21.
    """
    rows, rank = update.A_RI.shape[0], config.rank(name)
    if update.magnitude_O is not None or rank < 1 or rows % rank:
        return None
    experts = rows // rank
    B_ORE = update.B_OR.float() * config.scale(name, rank)
    return ExpertPair(
        update.A_RI.view(experts, rank, -1),
        B_ORE.view(-1, rank, experts).permute(2, 1, 0).contiguous(),
    )
