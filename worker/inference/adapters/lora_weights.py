"""Stacked LoRA weights of several adapters on the device: each token of a batch uses its own adapter.

On a GPU the A matrices of all slots are further rows of the base model's weight, and so part of its matmul:
that costs less than a matmul of their own. A kernel applies the B matrices. Elsewhere there are two dense
matmuls per group of layers, y = W·x + ((x · A_CIᵀ) ⊙ mask_NC) · B_CO: the columns C are those from the first
to the last slot in use, and the mask keeps for each token the columns of its own adapter. Slot 0 means no
adapter. (S-LoRA and Punica gather weights instead.)
Shape letters: N tokens, S slots, M layers of a group, R rank, I inputs, O outputs of all layers, C columns.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from worker.inference.adapters.cache import CachedAdapter, LoraPair
from worker.inference.failures import AdapterUnsupported
from worker.inference.model.linears import MergedLinears

_RANK_STEP = 16
# From so many tokens on, dense matmuls (cuBLAS) are faster than the kernel, up to so many columns.
_DENSE_FROM_TOKENS = 128
_DENSE_COLUMNS = 256


@dataclass(frozen=True)
class Selection:
    """The adapter slot of each token. `used`: the slots in use, ascending, without 0."""

    slots_N: torch.Tensor
    used: list[int]
    is_mixed: bool
    _masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    def column_mask(self, first_slot: int, last_slot: int, columns_per_slot: int) -> torch.Tensor:
        """Boolean [N, C] over the columns of these slots: whether a column is of the token's own slot."""
        key = (first_slot, last_slot, columns_per_slot)
        if key not in self._masks:
            slots_S = torch.arange(first_slot, last_slot + 1, device=self.slots_N.device)
            columns = len(slots_S) * columns_per_slot
            slots_C = slots_S.repeat_interleave(columns_per_slot, output_size=columns)
            self._masks[key] = self.slots_N[:, None] == slots_C
        return self._masks[key]


class LoraSlots:
    """The weights of slots 1 to `count`, allocated for the groups of layers that adapters target."""

    def __init__(
        self,
        model: nn.Module,
        groups: list[MergedLinears],
        *,
        count: int,
        dtype: torch.dtype,
        uses_kernels: bool = False,
    ) -> None:
        self.selection: Selection | None = None
        # Increased whenever tensors were reallocated: CUDA graphs captured before are invalid then.
        self.layout_version = 0
        self.count = count
        self.dtype = dtype
        self.rank = 0
        self.uses_kernels = uses_kernels
        self._modules = dict(model.named_modules())
        self._groups = {name: group for group in groups for name in group.names}
        self._lora: dict[MergedLinears, GroupLora] = {}

    def prepare(self, rank: int) -> None:
        """Allocate weights of this rank for all layers except the output layer, before any adapter."""
        self._grow_rank(rank)
        for name, group in self._groups.items():
            if not name.endswith("lm_head"):
                self._add(group)

    def load(self, slot: int, adapter: CachedAdapter) -> None:
        """Copy an adapter's weights into a slot, replacing the previous ones. Raises AdapterUnsupported."""
        for name, pair in adapter.pairs.items():
            self._check(name, pair)
        self._grow_rank(adapter.rank)
        for name in adapter.pairs:
            self._add(self._groups[name])
        for group, lora in self._lora.items():
            lora.fill(slot - 1, [adapter.pairs.get(name) for name in group.names])

    def select(self, used: set[int], slots_N: torch.Tensor) -> None:
        """Set the slots of the tokens of the next forward passes. `used`: all slots in `slots_N`."""
        adapters = sorted(used - {0})
        self.selection = Selection(slots_N, adapters, is_mixed=len(used) > 1) if adapters else None

    def begin(self, token_count: int) -> None:
        """Start a forward pass of the first `token_count` tokens, without the masks of the one before."""
        if self.selection is not None:
            slots_N = self.selection.slots_N[:token_count]
            self.selection = Selection(slots_N, self.selection.used, self.selection.is_mixed)

    def _check(self, name: str, pair: LoraPair) -> None:
        module = self._modules.get(name)
        if module is None:
            raise AdapterUnsupported(
                f"The adapter targets {name!r}, which the base model does not have.",
                hint="It was trained on another base model.",
            )
        if name not in self._groups:
            raise AdapterUnsupported(f"The adapter targets {name!r}, which is not a linear layer.")
        assert isinstance(module, nn.Linear)
        inputs, outputs = pair.A_RI.shape[1], pair.B_RO.shape[1]
        if (inputs, outputs) != (module.in_features, module.out_features):
            raise AdapterUnsupported(
                f"The adapter's weights for {name!r} take {inputs} inputs to {outputs} outputs; the base "
                f"model's layer takes {module.in_features} to {module.out_features}.",
                hint="It was trained on another base model.",
            )

    def _grow_rank(self, rank: int) -> None:
        """Reallocate all slots if this rank is larger than theirs.

        Each group has a rank of its own, so that a lack of memory half-way leaves all adapters as they are.
        """
        self.rank = max(self.rank, -(-rank // _RANK_STEP) * _RANK_STEP)
        for lora in self._lora.values():
            if lora.rank < self.rank:
                self.layout_version += 1
                lora.grow_rank(self.rank)

    def _add(self, group: MergedLinears) -> None:
        if group not in self._lora:
            self._lora[group] = group.update = GroupLora(group, self)
            self.layout_version += 1


class GroupLora:
    """The stacked weights of all slots for one group of layers."""

    def __init__(self, group: MergedLinears, slots: LoraSlots) -> None:
        self._group = group
        self._slots = slots
        self.rank = slots.rank
        self._A_MSRI, self._B_SRO = self._stacks(self.rank)
        self._starts = [sum(group.widths[:index]) for index in range(len(group.widths))]
        self._tiles_T3: torch.Tensor | None = None
        if slots.uses_kernels:
            from worker.kernels import batched_lora

            tiles = batched_lora.output_tiles(group.widths)
            self._tiles_T3 = torch.tensor(tiles, dtype=torch.int32, device=group.device)

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        """The group's outputs [N, O], with the update of each token's adapter."""
        selection = self._slots.selection
        if selection is None:
            return self._group.weights.product(x_NI)
        if self._tiles_T3 is not None:
            from worker.kernels import batched_lora

            y_NO, inner_NC = self._group.weights.product_with_rows(x_NI)
            if len(x_NI) > _DENSE_FROM_TOKENS and self._slots.count * self.rank <= _DENSE_COLUMNS:
                self._add_dense(y_NO, inner_NC, selection)
                return y_NO
            return batched_lora.expand(y_NO, inner_NC, selection.slots_N, self._B_SRO, self._tiles_T3)
        y_NO = self._group.weights.product(x_NI)
        for layer, part_NO in enumerate(y_NO.split(self._group.widths, -1)):
            self._update(layer, part_NO, x_NI, selection)
        return y_NO

    def fill(self, index: int, pairs: list[LoraPair | None]) -> None:
        """Write slot `index` + 1, a pair per layer. Without a pair, and beyond a pair's rank, it is zero."""
        for layer, pair in enumerate(pairs):
            rank = pair.rank if pair is not None else 0
            outputs = slice(self._starts[layer], self._starts[layer] + self._group.widths[layer])
            A_RI, B_RO = self._A_MSRI[layer, index], self._B_SRO[index, :, outputs]
            if rank < self.rank:
                A_RI[rank:].zero_()
                B_RO[rank:].zero_()
            if pair is not None:
                A_RI[:rank].copy_(pair.A_RI, non_blocking=True)
                B_RO[:rank].copy_(pair.B_RO, non_blocking=True)

    def grow_rank(self, rank: int) -> None:
        """Copy the weights to new stacks of this rank. Nothing changes where memory is lacking for them."""
        old_A_MSRI, old_B_SRO = self._A_MSRI.clone(), self._B_SRO
        self._A_MSRI, self._B_SRO = self._stacks(rank)
        self.rank = rank
        self._A_MSRI[:, :, : old_A_MSRI.shape[2]] = old_A_MSRI
        self._B_SRO[:, : old_B_SRO.shape[1]] = old_B_SRO

    def _add_dense(self, y_NO: torch.Tensor, inner_NC: torch.Tensor, selection: Selection) -> None:
        """Add the updates with dense matmuls over all slots; columns of other adapters are set to zero."""
        columns = self._slots.count * self.rank
        own_NC = selection.column_mask(1, self._slots.count, self.rank)
        parts = zip(
            y_NO.split(self._group.widths, -1),
            inner_NC.split(columns, -1),
            self._B_SRO.flatten(0, 1).split(self._group.widths, -1),
            strict=True,
        )
        for part_NO, layer_NC, B_CO in parts:
            part_NO.addmm_(layer_NC.where(own_NC, 0), B_CO)

    def _update(self, layer: int, y_NO: torch.Tensor, x_NI: torch.Tensor, selection: Selection) -> None:
        slots = slice(selection.used[0] - 1, selection.used[-1])
        outputs = slice(self._starts[layer], self._starts[layer] + self._group.widths[layer])
        inner_NC = functional.linear(x_NI, self._A_MSRI[layer, slots].flatten(0, 1))
        if selection.is_mixed:
            # `where`, not a product: an infinity in another adapter's column must not become NaN.
            own_NC = selection.column_mask(selection.used[0], selection.used[-1], self.rank)
            inner_NC = inner_NC.where(own_NC, 0)
        y_NO.addmm_(inner_NC, self._B_SRO[slots, :, outputs].flatten(0, 1))

    def _stacks(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        group, slots = self._group, self._slots
        shape = (len(group.widths), slots.count, rank, group.input_width)
        # Before A, whose rows replace those of the group's weights: after that nothing may fail.
        B_SRO = torch.zeros(slots.count, rank, sum(group.widths), dtype=slots.dtype, device=group.device)
        if slots.uses_kernels:
            A_MSRI = group.weights.append_rows(shape[0] * shape[1] * shape[2]).view(shape)
        else:
            A_MSRI = torch.zeros(shape, dtype=slots.dtype, device=group.device)
        return A_MSRI, B_SRO
