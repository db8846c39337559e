"""LoRA of several adapters on the stacked weights of a mixture's experts, for each token its own adapter's.

Pairs of a token and one of its experts are sorted by expert, and each product is one grouped matrix product
over the experts, as in transformers' `grouped_mm_experts_forward`. The A and B of all slots are side by side,
so that an expert's update is two products whatever the number of adapters: y = W·x + ((x · A_CIᵀ) ⊙ mask_PC)
· B_CO. No shape depends on what the router chose, so that a step on a GPU can be captured as a CUDA graph.
Shape letters: N tokens, K experts of a token, P = N · K pairs, E experts, S slots, R rank, C = S · R columns,
I inputs, O outputs, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from worker.inference.adapters.expert_pairs import ExpertPair
from worker.inference.adapters.selection import Selection, column_mask
from worker.models.fused_experts import DOWN, GATE_UP

# Rows of matrices in a grouped product on a GPU begin at multiples of 16 bytes.
_ALIGNED_BYTES = 16
_MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class ExpertGroups:
    """Pairs sorted by expert. `tokens_P`: the token of each pair; `ends_E`: where each expert's pairs end."""

    order_P: torch.Tensor
    tokens_P: torch.Tensor
    ends_E: torch.Tensor

    @classmethod
    def sort(cls, experts_NK: torch.Tensor, expert_count: int) -> "ExpertGroups":
        """Sort the pairs of tokens and their experts."""
        experts_P, order_P = experts_NK.flatten().sort()
        all_E = torch.arange(expert_count, device=experts_NK.device, dtype=experts_P.dtype)
        ends_E = torch.searchsorted(experts_P, all_E, right=True, out_int32=True)
        return cls(order_P, order_P // experts_NK.shape[1], ends_E)

    def product(self, x_PI: torch.Tensor, weight_EIO: torch.Tensor) -> torch.Tensor:
        """Each pair's row times the matrix of its expert, [P, O]."""
        if _can_group(x_PI, weight_EIO):
            return functional.grouped_mm(x_PI, weight_EIO, offs=self.ends_E)
        y_PO = x_PI.new_empty(len(x_PI), weight_EIO.shape[2])
        start = 0
        for expert, end in enumerate(self.ends_E.tolist()):
            if end > start:
                torch.mm(x_PI[start:end], weight_EIO[expert], out=y_PO[start:end])
            start = end
        return y_PO


class ExpertLora:
    """Replaces the `forward` of one module of experts; without adapters in a step, its own is called."""

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, find_selection: Callable[[], Selection | None]
    ) -> None:
        self._module = module
        self._dtype = dtype
        self._find_selection = find_selection
        self._forward = module.forward
        # Of no type: torch types a module's private methods as tensors.
        self._apply_gate: Any = module._apply_gate
        self._stacks: dict[str, ExpertStack] = {}
        module.forward = self

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum [N, H] of each token's experts; the names of the parameters are transformers' own."""
        selection = self._find_selection()
        if selection is None:
            output_NH: torch.Tensor = self._forward(hidden_states, top_k_index, top_k_weights)
            return output_NH
        groups = ExpertGroups.sort(top_k_index, self._weight(DOWN).shape[0])
        slots_P, slot_count = selection.slots_N[groups.tokens_P], selection.slot_count
        gate_up_PO = self._linear(GATE_UP, hidden_states[groups.tokens_P], groups, slots_P, slot_count)
        y_PH = self._linear(DOWN, self._apply_gate(gate_up_PO), groups, slots_P, slot_count)
        y_PH = y_PH * top_k_weights.flatten()[groups.order_P, None]
        by_token_PH = torch.empty_like(y_PH)
        by_token_PH[groups.order_P] = y_PH
        return by_token_PH.view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)

    def reserve(self, parameter: str, slot_count: int, rank: int) -> bool:
        """Allocate for so many slots of this rank. Returns whether tensors were reallocated."""
        before = self._stacks.get(parameter)
        if before and before.slot_count >= slot_count and before.rank >= rank:
            return False
        if before:
            slot_count, rank = max(slot_count, before.slot_count), max(rank, before.rank)
        self._stacks[parameter] = ExpertStack(
            self._weight(parameter), self._dtype, slot_count=slot_count, rank=rank, before=before
        )
        return True

    def fill(self, index: int, pairs: dict[str, ExpertPair]) -> None:
        """Write slot `index` + 1, with pairs by parameter. Without a pair it is zero."""
        for parameter, stack in self._stacks.items():
            stack.fill(index, pairs.get(parameter))

    def slot_pairs(self, first: int, second: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """The tensors of two slots, by index; None where a stack has only one of these slots."""
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for stack in self._stacks.values():
            has_first, has_second = (index < stack.slot_count for index in (first, second))
            if has_first != has_second:
                return None
            if has_first:
                pairs += zip(stack.tensors_of(first), stack.tensors_of(second), strict=True)
        return pairs

    def remove(self) -> None:
        """Give the module its own `forward` back."""
        self._module.forward = self._forward

    def _linear(
        self,
        parameter: str,
        x_PI: torch.Tensor,
        groups: ExpertGroups,
        slots_P: torch.Tensor,
        slot_count: int,
    ) -> torch.Tensor:
        y_PO = groups.product(x_PI, self._weight(parameter).transpose(1, 2))
        stack = self._stacks.get(parameter)
        return y_PO if stack is None else y_PO.add_(stack.update(x_PI, groups, slots_P, slot_count))

    def _weight(self, parameter: str) -> torch.Tensor:
        weight_EOI = getattr(self._module, parameter)
        assert isinstance(weight_EOI, torch.Tensor)
        return weight_EOI


class ExpertStack:
    """The A and B of the slots 1 to `slot_count` for one parameter."""

    def __init__(
        self,
        weight_EOI: torch.Tensor,
        dtype: torch.dtype,
        *,
        slot_count: int,
        rank: int,
        before: "ExpertStack | None" = None,
    ) -> None:
        experts, outputs, inputs = weight_EOI.shape
        self.slot_count = slot_count
        self.rank = rank
        self._A_ESRI, self._B_ESRO = (
            torch.zeros(experts, slot_count, rank, width, dtype=dtype, device=weight_EOI.device)
            for width in (inputs, outputs)
        )
        if before is not None:
            self._A_ESRI[:, : before.slot_count, : before.rank] = before._A_ESRI
            self._B_ESRO[:, : before.slot_count, : before.rank] = before._B_ESRO

    def update(
        self, x_PI: torch.Tensor, groups: ExpertGroups, slots_P: torch.Tensor, slot_count: int
    ) -> torch.Tensor:
        """What the adapters of the pairs' slots, 1 to `slot_count`, add to the outputs, [P, O]."""
        slot_count = min(slot_count, self.slot_count)
        inner_PC = groups.product(x_PI, self._A_ESRI[:, :slot_count].flatten(1, 2).transpose(1, 2))
        # `where`, not a product: an infinity in another adapter's column must not become NaN.
        own_PC = column_mask(slots_P, 1, slot_count, self.rank)
        return groups.product(inner_PC.where(own_PC, 0), self._B_ESRO[:, :slot_count].flatten(1, 2))

    def tensors_of(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of slot `index` + 1."""
        return self._A_ESRI[:, index], self._B_ESRO[:, index]

    def fill(self, index: int, pair: ExpertPair | None) -> None:
        """Write slot `index` + 1. Without a pair, and beyond a pair's rank, it is zero."""
        if index >= self.slot_count:
            return
        A_ERI, B_ERO = self.tensors_of(index)
        rank = pair.rank if pair is not None else 0
        if rank < self.rank:
            A_ERI[:, rank:].zero_()
            B_ERO[:, rank:].zero_()
        if pair is not None:
            A_ERI[:, :rank].copy_(pair.A_ERI, non_blocking=True)
            B_ERO[:, :rank].copy_(pair.B_ERO, non_blocking=True)


def _can_group(x_PI: torch.Tensor, weight_EIO: torch.Tensor) -> bool:
    """Whether one kernel, without a wait for the device, computes the product of all experts."""
    if not x_PI.is_cuda or torch.cuda.get_device_capability(x_PI.device) < _MIN_CAPABILITY:
        return False
    widths = weight_EIO.shape[1:]
    return all(width * weight_EIO.element_size() % _ALIGNED_BYTES == 0 for width in widths)
