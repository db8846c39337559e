"""The decoder of a PeftModel as worker/decoder computes it, for families whose layers are like Llama's.

PEFT's modules, parameters and files stay as they are: the weights and settings are read from them, and no
module is changed. T: tokens of a batch, whose rows are concatenated.
"""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from worker.decoder.autograd import compute, projections_of
from worker.decoder.layer import DecoderStep
from worker.decoder.lora_linears import LoraLinears, copy_all
from worker.decoder.operations import Operations
from worker.decoder.reading import Unsupported, read_angles, read_stack
from worker.training.optimizations.lora_layers import LoraKernels, is_plain, read_linear
from worker.training.optimizations.varlen_attention import VarlenAttention


class ExplicitDecoder:
    """Computes what the model's own decoder computes with its adapter, also one that PEFT has disabled, from
    padding-free batches.
    """

    def __init__(
        self,
        model: PeftModel,
        dtype: torch.dtype,
        operations: Operations,
        kernels: LoraKernels,
        attention: VarlenAttention,
    ) -> None:
        """`dtype`: that of the base model's products and of the adapters'. Raises Unsupported."""
        self._decoder: Any = model.get_base_model().base_model
        self._dtype = dtype
        self._operations = operations
        self._attention = attention
        self._stack = read_stack(self._decoder, lambda linears: _read_linears(linears, dtype, kernels))
        self.projections = projections_of(self._stack)

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seq_lens_q: torch.Tensor,
        max_length_q: int,
        **_others: Any,
    ) -> BaseModelOutputWithPast:
        """The hidden states [1, T, H] of a batch of `PaddingFreeCollator`."""
        copy_all(self.projections)
        embedded_1TH = self._decoder.embed_tokens(input_ids).to(self._dtype)

        def attend(
            layer: int,
            q_THD: torch.Tensor,
            k_TKD: torch.Tensor,
            v_TKD: torch.Tensor,
            *,
            scale: float,
            window: int | None,
        ) -> torch.Tensor:
            heads = (q_THD, k_TKD, v_TKD)
            return self._attention(*heads, cu_seq_lens_q, max_length_q, scale=scale, window=window)

        angles = read_angles(self._decoder, self._stack, embedded_1TH, position_ids)
        step = DecoderStep(self._operations, attend, angles)
        checkpoints = self._decoder.training and bool(self._decoder.layers[0].gradient_checkpointing)
        hidden_TH = compute(self._stack, embedded_1TH[0], step, checkpoints=checkpoints)
        return BaseModelOutputWithPast(last_hidden_state=hidden_TH[None])

    @property
    def dequantized_bytes(self) -> int:
        """Bytes that caching all 4-bit weights dequantized takes."""
        return sum(one.dequantized_bytes for one in self.projections)

    def cache_dequantized(self) -> None:
        """Cache all 4-bit weights dequantized, in place of dequantizing them in every pass."""
        for one in self.projections:
            one.cache_dequantized()

    def drop_dequantized(self) -> bool:
        """Free the cached weights. Returns whether there were any."""
        were_cached = [one.drop_dequantized() for one in self.projections]
        return any(were_cached)


def _read_linears(modules: list[nn.Module], dtype: torch.dtype, kernels: LoraKernels) -> LoraLinears:
    for module in modules:
        _check_linear(module)
    layers = [read_linear(module, kernels.dequantizers) for module in modules]
    return LoraLinears(layers, dtype, kernels.low_rank)


def _check_linear(module: nn.Module) -> None:
    if isinstance(module, LoraLayer):
        if not is_plain(module):
            raise Unsupported("an adapter that is no plain LoRA")
    elif type(module) not in (nn.Linear, Linear4bit) or any(one.requires_grad for one in module.parameters()):
        raise Unsupported(f"the linear layer {type(module).__name__}, or one that is trained")
