"""Puts the LoRA function into a PeftModel and takes it out again; what it does not know stays PEFT's own.

PEFT's modules, their parameters and what is saved are not touched: only `forward` of a module is, by an
attribute that hides the method.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as LoraOverDense
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraOver4Bit
from torch import nn

from worker.training.fast.lora_linear import Adapters, Layer, lora_linears

# Layers that every known family calls with one and the same input, in this order.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_ADAPTER = "default"

# The weight [O, I] of packed bytes, in the type that their state names.
Unpack = Callable[[torch.Tensor, QuantState], torch.Tensor]


class FourBitWeight:
    """Unpacked each time it is read: the largest saving of QLoRA is that it is not kept. Unless there is
    memory to spare."""

    def __init__(self, linear: Linear4bit, unpack: Unpack) -> None:
        self._linear = linear
        self._unpack = unpack
        self._kept_OI: torch.Tensor | None = None

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        return self._make(dtype) if self._kept_OI is None else self._kept_OI

    def keep(self, dtype: torch.dtype) -> None:
        """From now on read what is unpacked here."""
        self._kept_OI = self._make(dtype)

    def forget(self) -> None:
        """From now on unpack again."""
        self._kept_OI = None

    def _make(self, dtype: torch.dtype) -> torch.Tensor:
        weight = self._linear.weight
        return self._unpack(weight.data, weight.quant_state).to(dtype)


class DenseWeight:
    """A weight of the model's own type."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [O, I]."""
        return self._linear.weight.detach().to(dtype)


@dataclass(frozen=True)
class _Pending:
    """What the first layer of a group has computed for the others."""

    x: torch.Tensor
    outputs: dict[int, torch.Tensor]


class Group:
    """LoRA layers that are called one after the other with one input: the first computes for all."""

    def __init__(self, layers: Sequence[LoraLayer], dtype: torch.dtype, unpack: Unpack) -> None:
        self._layers = list(layers)
        self._dtype = dtype
        self._parameters = [
            matrix[_ADAPTER].weight for layer in layers for matrix in (layer.lora_A, layer.lora_B)
        ]
        self._weights = [_weight_of(layer.get_base_layer(), unpack) for layer in layers]
        self._adapters: Adapters | None = None
        self._pending: _Pending | None = None

    @property
    def packed_weights(self) -> list[FourBitWeight]:
        """Those that are in 4 bits."""
        return [weight for weight in self._weights if isinstance(weight, FourBitWeight)]

    def begin_pass(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Forget the last pass; answers what must be copied for this one: (to, from)."""
        self._pending = None
        if self._adapters is None:
            self._adapters = _empty_adapters(self._parameters[0::2], self._parameters[1::2], self._dtype)
        copies = [
            *zip(self._adapters.a_SI.split(self._adapters.ranks), self._parameters[0::2], strict=True),
            *zip(self._adapters.b_OR, self._parameters[1::2], strict=True),
        ]
        return [(copy, parameter.detach()) for copy, parameter in copies]

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """What the layer at this place of the group makes of the input."""
        if self._pending is not None and self._pending.x is x and place in self._pending.outputs:
            output = self._pending.outputs.pop(place)
            if not self._pending.outputs:
                self._pending = None
            return output
        outputs = dict(enumerate(self._compute(x)))
        output = outputs.pop(place)
        self._pending = _Pending(x, outputs) if outputs else None
        return output

    def takes(self, x: torch.Tensor) -> bool:
        """Whether base and adapters compute in one type here, as the function does."""
        device = x.device.type
        is_mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_mixed else self._parameters[0].dtype
        return (
            dtype == self._dtype
            and self._adapters is not None
            and not any(layer.disable_adapters or layer.merged for layer in self._layers)
        )

    def _compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        assert self._adapters is not None
        parts = [
            Layer(weight, _bias_of(layer, self._dtype), layer.scaling[_ADAPTER], _dropout_of(layer))
            for layer, weight in zip(self._layers, self._weights, strict=True)
        ]
        x_TI = x.reshape(-1, x.shape[-1]).to(self._dtype)
        outputs = lora_linears(x_TI, parts, self._adapters, self._parameters)
        return [y_TO.view(*x.shape[:-1], -1).to(x.dtype) for y_TO in outputs]


class FastLinears:
    """The LoRA function in a model."""

    def __init__(self, model: PeftModel, dtype: torch.dtype, unpack: Unpack = dequantize_4bit) -> None:
        """`dtype`: of the products of base and adapters, which must be one."""
        self._dtype = dtype
        self._keeps_weights = False
        self._groups: list[Group] = []
        self._forwards: list[tuple[LoraLayer, Callable[..., torch.Tensor]]] = []
        self._hook = model.register_forward_pre_hook(self._begin_pass)
        for layers in find_groups(model):
            group = Group(layers, dtype, unpack)
            self._groups.append(group)
            for place, layer in enumerate(layers):
                self._forwards.append((layer, _make_forward(layer, group, place)))
        self.layers = len(self._forwards)
        self._put_in()

    @property
    def unpacked_bytes(self) -> int:
        """What it would take to keep all 4-bit weights unpacked."""
        layers = [layer.get_base_layer() for layer, _forward in self._forwards]
        packed = [base for base in layers if isinstance(base, Linear4bit)]
        return sum(base.in_features * base.out_features for base in packed) * self._dtype.itemsize

    def keep_weights(self) -> None:
        """Unpack every weight once, and not in every pass."""
        self._keeps_weights = True
        for weight in self._packed_weights():
            weight.keep(self._dtype)

    def forget_weights(self) -> bool:
        """Give that memory back; whether there was any."""
        had_any, self._keeps_weights = self._keeps_weights, False
        for weight in self._packed_weights():
            weight.forget()
        return had_any

    def remove(self) -> None:
        """Leave the model as PEFT made it."""
        self._take_out()
        self._hook.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it every layer is PEFT's own."""
        self._take_out()
        try:
            yield
        finally:
            self._put_in()

    def _begin_pass(self, _module: nn.Module, _arguments: Any) -> None:
        copies = [copy for group in self._groups for copy in group.begin_pass()]
        if copies:
            # All in one launch: kernels of their own for so many small matrices would take longer than them.
            torch._foreach_copy_([to for to, _from in copies], [origin for _to, origin in copies])

    def _packed_weights(self) -> list[FourBitWeight]:
        return [weight for group in self._groups for weight in group.packed_weights]

    def _put_in(self) -> None:
        for layer, forward in self._forwards:
            vars(layer)["forward"] = forward

    def _take_out(self) -> None:
        for layer, _forward in self._forwards:
            vars(layer).pop("forward", None)


def find_groups(model: nn.Module) -> list[list[LoraLayer]]:
    """The layers that the function can stand in for, those with one input together."""
    found: list[list[LoraLayer]] = []
    for parent in model.modules():
        children = {name: child for name, child in parent.named_children() if is_plain(child)}
        for names in _SIBLINGS:
            siblings = [children.pop(name) for name in names if name in children]
            if siblings:
                found.append(siblings)
        found += [[child] for child in children.values()]
    return found


def is_plain(module: nn.Module) -> bool:
    """Whether this is LoRA on a frozen linear layer, with nothing of DoRA and the like about it."""
    if type(module) not in (LoraOver4Bit, LoraOverDense):
        return False
    return _is_plain_lora(module)


def _is_plain_lora(module: LoraLayer) -> bool:
    base = module.get_base_layer()
    return (
        type(base) in (Linear4bit, nn.Linear)
        and module.active_adapters == [_ADAPTER]
        and not module.lora_variant
        and not getattr(module, "fan_in_fan_out", False)
        and type(module.lora_dropout[_ADAPTER]) in (nn.Dropout, nn.Identity)
        and module.lora_A[_ADAPTER].bias is None
        and module.lora_B[_ADAPTER].bias is None
        and not any(parameter.requires_grad for parameter in base.parameters())
    )


def _make_forward(layer: LoraLayer, group: Group, place: int) -> Callable[..., torch.Tensor]:
    plain = type(layer).forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not group.takes(x):
            output: torch.Tensor = plain(layer, x, *args, **kwargs)
            return output
        return group.output(place, x)

    return forward


def _empty_adapters(
    matrices_a: Sequence[torch.Tensor], matrices_b: Sequence[torch.Tensor], dtype: torch.dtype
) -> Adapters:
    ranks = sum(len(a_RI) for a_RI in matrices_a)
    a_SI = matrices_a[0].new_empty(ranks, matrices_a[0].shape[1], dtype=dtype)
    return Adapters(a_SI, tuple(torch.empty_like(b_OR, dtype=dtype) for b_OR in matrices_b))


def _weight_of(base: nn.Linear, unpack: Unpack) -> FourBitWeight | DenseWeight:
    return FourBitWeight(base, unpack) if isinstance(base, Linear4bit) else DenseWeight(base)


def _bias_of(layer: LoraLayer, dtype: torch.dtype) -> torch.Tensor | None:
    bias = layer.get_base_layer().bias
    return None if bias is None else bias.detach().to(dtype)


def _dropout_of(layer: LoraLayer) -> float:
    dropout = layer.lora_dropout[_ADAPTER]
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
