"""Stacked LoRA weights of several adapters on the device: each token of a batch uses its own adapter.

On a GPU the A matrices of all slots are further rows of the base model's weight, and so part of its matmul:
that costs less than a matmul of their own. They are ordered by slot, then layer, then rank, so that a step
computes those of the first slots alone, up to the next power of two. A kernel applies the B matrices.
Elsewhere there are dense matmuls, y = W·x + ((x · A_CIᵀ) ⊙ mask_NC) · B_CO for each layer: the columns C are
those from the first to the last slot in use, and the mask keeps for each token the columns of its own
adapter. Slot 0 means no adapter. (S-LoRA and Punica gather weights instead.)
Shape letters: N tokens, S slots, M layers of a group, R rank, I inputs, O outputs of all layers, C columns.
"""

import torch
from torch import nn
from torch.nn import functional

from worker.inference.adapters.cache import CachedAdapter, LoraPair
from worker.inference.adapters.expert_lora import ExpertLora
from worker.inference.adapters.expert_pairs import ExpertPair
from worker.inference.adapters.selection import Selection
from worker.inference.adapters.slots import count_computed
from worker.inference.failures import AdapterUnsupported
from worker.inference.model.linears import MergedLinears
from worker.inference.model.routers import merge_router
from worker.kernels.pending_lora import PendingLora
from worker.models.routers import WEIGHT
from worker.models.serving_path import find_parameter_obstacle

_RANK_STEP = 16
# From so many tokens on, dense matmuls (cuBLAS) are faster than the kernel, up to so many columns.
_DENSE_FROM_TOKENS = 128
_DENSE_COLUMNS = 256
# Tensors that are exchanged at once: so many copies need memory.
_EXCHANGED_TENSORS = 16


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
        # By the name of the module of a layer's experts.
        self._experts: dict[str, ExpertLora] = {}

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
        for name, experts_pair in adapter.expert_pairs.items():
            self._check_experts(name, experts_pair)
        self._reserve_experts(slot, adapter.expert_pairs)
        self._grow_rank(adapter.rank)
        for name in adapter.pairs:
            self._add(self._groups.get(name) or self._group_of_router(name))
        for group, lora in self._lora.items():
            lora.fill(slot - 1, [adapter.pairs.get(name) for name in group.names])
        for holder, experts in self._experts.items():
            own = {
                name.removeprefix(f"{holder}."): pair
                for name, pair in adapter.expert_pairs.items()
                if name.rpartition(".")[0] == holder
            }
            experts.fill(slot - 1, own)

    def swap(self, first: int, second: int) -> bool:
        """Exchange the adapters of two slots, in place: captured graphs stay valid. Returns whether it did.

        It does not where only one of the slots has memory for experts. Raises torch.OutOfMemoryError before
        anything has changed.
        """
        pairs = [
            (stack[first - 1], stack[second - 1])
            for lora in self._lora.values()
            for stack in (lora.A_SMRI, lora.B_SRO)
        ]
        for experts in self._experts.values():
            of_experts = experts.slot_pairs(first - 1, second - 1)
            if of_experts is None:
                return False
            pairs += of_experts
        _exchange(pairs)
        return True

    def select(self, used: set[int], slots_N: torch.Tensor) -> None:
        """Set the slots of the tokens of the next forward passes. `used`: all slots in `slots_N`."""
        adapters = sorted(used - {0})
        self.selection = None
        if adapters:
            slot_count = count_computed(adapters[-1], self.count)
            self.selection = Selection(slots_N, adapters, slot_count, is_mixed=len(used) > 1)

    @property
    def slot_count(self) -> int:
        """How many slots the next forward passes compute: 0, a power of two, or `count`."""
        return self.selection.slot_count if self.selection is not None else 0

    def begin(self, token_count: int) -> None:
        """Start a forward pass of the first `token_count` tokens, without the masks of the one before."""
        if self.selection is not None:
            one = self.selection
            self.selection = Selection(one.slots_N[:token_count], one.used, one.slot_count, one.is_mixed)

    def _find(self, name: str) -> nn.Module:
        module = self._modules.get(name)
        if module is None:
            raise AdapterUnsupported(
                f"The adapter targets {name!r}, which the base model does not have.",
                hint="It was trained on another base model.",
            )
        return module

    def _check(self, name: str, pair: LoraPair) -> None:
        module = self._find(name)
        if name in self._groups:
            outputs, inputs = self._groups[name].shape_of(name)
        elif obstacle := find_parameter_obstacle(module, WEIGHT):
            raise AdapterUnsupported(
                f"The adapter targets {name!r}, which is not a linear layer: the base model has {obstacle}."
            )
        else:
            outputs, inputs = module.get_parameter(WEIGHT).shape
        found = (pair.A_RI.shape[1], pair.B_OR.shape[0])
        if found != (inputs, outputs):
            raise AdapterUnsupported(
                f"The adapter's weights for {name!r} take {found[0]} inputs to {found[1]} outputs; the base "
                f"model's layer takes {inputs} to {outputs}.",
                hint="It was trained on another base model.",
            )

    def _check_experts(self, name: str, pair: ExpertPair) -> None:
        holder, _, parameter = name.rpartition(".")
        module = self._find(holder)
        if obstacle := find_parameter_obstacle(module, parameter):
            raise AdapterUnsupported(f"The adapter targets {name!r}, but the base model has {obstacle}.")
        experts, outputs, inputs = module.get_parameter(parameter).shape
        found = (len(pair.A_ERI), pair.A_ERI.shape[2], pair.B_ERO.shape[2])
        if found != (experts, inputs, outputs):
            raise AdapterUnsupported(
                f"The adapter's weights for {name!r} are of {found[0]} experts with {found[1]} inputs and "
                f"{found[2]} outputs; the base model has {experts} with {inputs} and {outputs}.",
                hint="It was trained on another base model.",
            )

    def _reserve_experts(self, slot: int, pairs: dict[str, ExpertPair]) -> None:
        """Allocate for the slots to `slot`, or to the next power of two.

        They are large: rank 16 on all of Qwen3-30B-A3B's experts takes 1.3 GB a slot. A layer that
        gets its first adapter is left as it was where memory is lacking.
        """
        slot_count = count_computed(slot, self.count)
        added: list[str] = []
        try:
            for name, pair in pairs.items():
                holder, _, parameter = name.rpartition(".")
                if holder not in self._experts:
                    self._experts[holder] = ExpertLora(
                        self._modules[holder], self.dtype, lambda: self.selection
                    )
                    added.append(holder)
                rank = -(-pair.rank // _RANK_STEP) * _RANK_STEP
                self.layout_version += self._experts[holder].reserve(parameter, slot_count, rank)
        except BaseException:
            for holder in added:
                self._experts.pop(holder).remove()
            raise

    def _group_of_router(self, name: str) -> MergedLinears:
        group = self._groups[name] = merge_router(
            name, self._modules[name], is_needed=lambda: self.selection is not None
        )
        if self.uses_kernels:
            group.weights.use_kernels()
        return group

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
    """The stacked weights of all slots for one group of layers: `A_SMRI`, and `B_SRO` of all its outputs."""

    def __init__(self, group: MergedLinears, slots: LoraSlots) -> None:
        self._group = group
        self._slots = slots
        self.rank = slots.rank
        self.A_SMRI, self.B_SRO = self._stacks(self.rank)
        self._starts = [sum(group.widths[:index]) for index in range(len(group.widths))]

    @property
    def selection(self) -> Selection | None:
        """The slots of the tokens of this forward pass; None where none has an adapter."""
        return self._slots.selection

    def __call__(self, x_NI: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor:
        """The group's outputs [N, O], with the update of each token's adapter, plus `plus_NO`."""
        selection, weights = self.selection, self._group.weights
        if selection is None:
            return weights.product(x_NI, plus_NO)
        if self._slots.uses_kernels:
            y_NO, inner_NC = self.products(x_NI, selection)
            if len(x_NI) <= _DENSE_FROM_TOKENS or selection.slot_count * self.rank > _DENSE_COLUMNS:
                from worker.kernels.serving import batched_lora

                widths = tuple(self._group.widths)
                return batched_lora.expand(y_NO, inner_NC, selection.slots_N, self.B_SRO, widths, plus_NO)
            self._add_dense(y_NO, inner_NC, 1, selection.column_mask(1, selection.slot_count, self.rank))
        else:
            first, last = selection.used[0], selection.used[-1]
            y_NO = weights.product(x_NI)
            inner_NC = functional.linear(x_NI, self.A_SMRI[first - 1 : last].flatten(0, 2))
            own_NC = selection.column_mask(first, last, self.rank) if selection.is_mixed else None
            self._add_dense(y_NO, inner_NC, first, own_NC)
        return y_NO if plus_NO is None else plus_NO + y_NO

    def products(self, x_NI: torch.Tensor, selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
        """The group's outputs [N, O] without adapters, and x times A of the selection's slots [N, C]."""
        row_count = selection.slot_count * len(self._group.widths) * self.rank
        return self._group.weights.product_with_rows(x_NI, row_count)

    def begin(self, x_NI: torch.Tensor) -> tuple[torch.Tensor, PendingLora | None]:
        """The group's outputs [N, O] without the update, and what is left of that; None where none has one.

        For kernels alone.
        """
        if self.selection is None:
            return self._group.weights.product(x_NI), None
        y_NO, inner_NC = self.products(x_NI, self.selection)
        return y_NO, PendingLora(inner_NC, self.selection.slots_N, self.B_SRO, len(self._group.widths))

    @property
    def is_idle(self) -> bool:
        """Whether no token of this pass has an adapter."""
        return self.selection is None

    def fill(self, index: int, pairs: list[LoraPair | None]) -> None:
        """Write slot `index` + 1, a pair per layer. Without a pair, and beyond a pair's rank, it is zero."""
        for layer, pair in enumerate(pairs):
            rank = pair.rank if pair is not None else 0
            outputs = slice(self._starts[layer], self._starts[layer] + self._group.widths[layer])
            A_RI, B_RO = self.A_SMRI[index, layer], self.B_SRO[index, :, outputs]
            if rank < self.rank:
                A_RI[rank:].zero_()
                B_RO[rank:].zero_()
            if pair is not None:
                A_RI[:rank].copy_(pair.A_RI, non_blocking=True)
                # Transposed on the device: on a processor that takes longer than to read the file.
                B_OR = pair.B_OR.to(B_RO.device, non_blocking=True)
                B_RO[:rank].copy_(B_OR.T)

    def grow_rank(self, rank: int) -> None:
        """Copy the weights to new stacks of this rank. Nothing changes where memory is lacking for them."""
        old_A_SMRI, old_B_SRO = self.A_SMRI.clone(), self.B_SRO
        self.A_SMRI, self.B_SRO = self._stacks(rank)
        self.rank = rank
        self.A_SMRI[:, :, : old_A_SMRI.shape[2]] = old_A_SMRI
        self.B_SRO[:, : old_B_SRO.shape[1]] = old_B_SRO

    def _add_dense(
        self, y_NO: torch.Tensor, inner_NC: torch.Tensor, first_slot: int, own_NC: torch.Tensor | None
    ) -> None:
        """Add the updates with a matmul per layer over the slots of `inner_NC`, from `first_slot` on.

        `own_NC`: the columns of a layer that are of the token's own adapter; the others count as zeros.
        """
        inner_NSMR = inner_NC.unflatten(1, (-1, len(self._group.widths), self.rank))
        slots = slice(first_slot - 1, first_slot - 1 + inner_NSMR.shape[1])
        B_CO = self.B_SRO[slots].flatten(0, 1)
        parts = zip(y_NO.split(self._group.widths, -1), B_CO.split(self._group.widths, -1), strict=True)
        for layer, (part_NO, layer_B_CO) in enumerate(parts):
            layer_NC = inner_NSMR[:, :, layer].flatten(1)
            if own_NC is not None:
                # `where`, not a product: an infinity in another adapter's column must not become NaN.
                layer_NC = layer_NC.where(own_NC, 0)
            part_NO.addmm_(layer_NC, layer_B_CO)

    def _stacks(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        group, slots = self._group, self._slots
        shape = (slots.count, len(group.widths), rank, group.input_width)
        # Before A, whose rows replace those of the group's weights: after that nothing may fail.
        B_SRO = torch.zeros(slots.count, rank, sum(group.widths), dtype=slots.dtype, device=group.device)
        if slots.uses_kernels:
            A_SMRI = group.weights.append_rows(shape[0] * shape[1] * shape[2]).view(shape)
        else:
            A_SMRI = torch.zeros(shape, dtype=slots.dtype, device=group.device)
        return A_SMRI, B_SRO


def _exchange(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Exchange the values of two tensors of each pair."""
    parts = [pairs[start : start + _EXCHANGED_TENSORS] for start in range(0, len(pairs), _EXCHANGED_TENSORS)]
    sizes = [[one.numel() for one, _ in part] for part in parts]
    # Allocated once, so that nothing can fail half-way.
    scratch = pairs[0][0].new_empty(max(map(sum, sizes)))
    for part, numels in zip(parts, sizes, strict=True):
        firsts, seconds = ([pair[side] for pair in part] for side in (0, 1))
        places = scratch[: sum(numels)].split(numels)
        copies = [place.view(one.shape) for place, one in zip(places, firsts, strict=True)]
        torch._foreach_copy_(copies, firsts)
        torch._foreach_copy_(firsts, seconds)
        torch._foreach_copy_(seconds, copies)
