"""LoRA weights of several adapters on the device, applied to one batch in two dense products per layer.

y = W·x + ((x · A_CIᵀ) ⊙ mask_BC) · B_CO, where the columns C are slots times rank and the mask leaves each
row its own adapter's columns. Slot 0 has no columns: no adapter. (S-LoRA and Punica gather weights instead.)
Shape letters: B rows, T tokens of a row, C columns, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from worker.inference.adapters import Adapter, LoraPair
from worker.inference.failures import AdapterUnsupported

_RANK_STEP = 8


@dataclass(frozen=True)
class Selection:
    """The columns that a forward pass needs, and which of them each row may use; None: all rows use all."""

    columns: slice
    mask_B1C: torch.Tensor | None


class LoraSlots:
    """Slots 1 to `count`. A layer is only touched once an adapter targets it."""

    def __init__(self, model: nn.Module, *, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self.selection: Selection | None = None
        self._count = count
        self._rank = 0
        self._dtype, self._device = dtype, device
        self._modules = dict(model.named_modules())
        self._linears: dict[str, LoraLinear] = {}
        self._column_slots_C = torch.empty(0, dtype=torch.long, device=device)

    def load(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter's weights into a slot, over what was there. Raises AdapterUnsupported."""
        for name, pair in adapter.pairs.items():
            self._check(name, pair)
        if adapter.rank > self._rank:
            self._widen(adapter.rank)
        for name in adapter.pairs.keys() - self._linears.keys():
            linear = self._modules[name]
            assert isinstance(linear, nn.Linear)
            self._linears[name] = LoraLinear(linear, self, self._new_stacks(linear))
        for name, linear_with_slots in self._linears.items():
            linear_with_slots.fill(self._columns(slot, slot), adapter.pairs.get(name))

    def select(self, slots: list[int], slots_B: torch.Tensor) -> None:
        """Say which slot each row of the next forward pass uses; the list and the tensor hold the same."""
        used = {slot for slot in slots if slot}
        if not used:
            self.selection = None
            return
        columns = self._columns(min(used), max(used))
        if len(set(slots)) == 1:
            self.selection = Selection(columns, None)
            return
        mask_BC = slots_B[:, None] == self._column_slots_C[None, columns]
        self.selection = Selection(columns, mask_BC[:, None, :])

    def _check(self, name: str, pair: LoraPair) -> None:
        module = self._modules.get(name)
        if module is None:
            raise AdapterUnsupported(
                f"The adapter targets {name!r}, which the base model does not have.",
                hint="It was trained on another base model.",
            )
        if not isinstance(module, nn.Linear):
            raise AdapterUnsupported(f"The adapter targets {name!r}, which is not a linear layer.")
        inputs, outputs = pair.A_RI.shape[1], pair.B_RO.shape[1]
        if (inputs, outputs) != (module.in_features, module.out_features):
            raise AdapterUnsupported(
                f"The adapter's weights for {name!r} take {inputs} inputs to {outputs} outputs; the base "
                f"model's layer takes {module.in_features} to {module.out_features}.",
                hint="It was trained on another base model.",
            )

    def _columns(self, first_slot: int, last_slot: int) -> slice:
        return slice((first_slot - 1) * self._rank, last_slot * self._rank)

    def _widen(self, rank: int) -> None:
        """Make room for a larger rank in every slot."""
        old_rank, self._rank = self._rank, -(-rank // _RANK_STEP) * _RANK_STEP
        for linear in self._linears.values():
            linear.widen(self._new_stacks(linear.linear), self._count, old_rank)
        slots = torch.arange(1, self._count + 1, device=self._device)
        self._column_slots_C = slots.repeat_interleave(self._rank)

    def _new_stacks(self, linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        columns = self._count * self._rank
        return (
            torch.zeros(columns, linear.in_features, dtype=self._dtype, device=self._device),
            torch.zeros(columns, linear.out_features, dtype=self._dtype, device=self._device),
        )


class LoraLinear:
    """Stands in for a linear layer's `forward`; the layer itself stays where it is, weights and all."""

    def __init__(
        self, linear: nn.Linear, slots: LoraSlots, stacks: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        self.linear = linear
        self._slots = slots
        self._A_CI, self._B_CO = stacks
        linear.forward = self  # type: ignore[assignment, method-assign]

    def __call__(self, x_BTI: torch.Tensor) -> torch.Tensor:
        y_BTO = functional.linear(x_BTI, self.linear.weight, self.linear.bias)
        selection = self._slots.selection
        if selection is None:
            return y_BTO
        inner_BTC = functional.linear(x_BTI, self._A_CI[selection.columns])
        if selection.mask_B1C is not None:
            # Chosen, not multiplied: an infinity in another row's columns must not become a NaN here.
            inner_BTC = inner_BTC.where(selection.mask_B1C, 0)
        return y_BTO + inner_BTC @ self._B_CO[selection.columns]

    def fill(self, columns: slice, pair: LoraPair | None) -> None:
        """Write a slot's columns; without a pair, and beyond its rank, they are zero."""
        A_CI, B_CO = self._A_CI[columns], self._B_CO[columns]
        A_CI.zero_()
        B_CO.zero_()
        if pair is not None:
            A_CI[: pair.rank].copy_(pair.A_RI)
            B_CO[: pair.rank].copy_(pair.B_RO)

    def widen(self, stacks: tuple[torch.Tensor, torch.Tensor], slot_count: int, old_rank: int) -> None:
        """Move the weights to larger stacks."""
        for new, old in zip(stacks, (self._A_CI, self._B_CO), strict=True):
            new.view(slot_count, -1, new.shape[1])[:, :old_rank] = old.view(
                slot_count, old_rank, old.shape[1]
            )
        self._A_CI, self._B_CO = stacks
