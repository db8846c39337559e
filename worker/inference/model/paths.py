"""Two ways to compute a base model over the paged cache: by worker/decoder, or by the model's own code.

Shape letters: N or T tokens of a step, V vocabulary, H hidden size; H and K (in HTD, KTD): heads of queries
and of keys, D head dimension.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from worker.decoder.layer import DecoderStep
from worker.decoder.operations import Operations, TorchOperations
from worker.decoder.reading import FAMILIES, Unsupported, read_angles, read_stack
from worker.decoder.stack import DecoderStack, forward
from worker.inference.failures import ModelUnsupported
from worker.inference.model import attention
from worker.inference.model.linears import MergedLinears, merge_linears, replace_forwards

# Of decode steps alone: see fused_steps.py.
FusedForward = Callable[
    [
        DecoderStack[MergedLinears],
        torch.Tensor,
        attention.Step,
        dict[str | None, tuple[torch.Tensor, torch.Tensor]],
    ],
    torch.Tensor,
]


class ModelPath(Protocol):
    """A forward pass of a base model. `groups`: its linear layers, to which adapters can be added.

    `has_logits_alone`: whether `logits` is supported.
    """

    groups: list[MergedLinears]
    has_logits_alone: bool

    def __call__(self, ids_N: torch.Tensor, step: attention.Step, *, has_logits: bool) -> torch.Tensor:
        """Return the logits [N, V], or the last hidden states [N, H]."""

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, V] of last hidden states that a call without logits has returned."""

    def use_kernels(self) -> ExitStack:
        """Compute by Triton kernels what they can. Returns what undoes it."""


class DecoderPath:
    """Computes a model by worker/decoder. The model's modules are read, and only its embedding is called."""

    has_logits_alone = True

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises Unsupported."""
        config = model.config
        if config.model_type not in FAMILIES or getattr(config, "final_logit_softcapping", None):
            raise Unsupported(f"the family {config.model_type}, or a cap of its logits")
        self.groups = merge_linears(model)
        self._groups_by_layer = {name: group for group in self.groups for name in group.names}
        self._names = {module: name for name, module in model.named_modules()}
        self._decoder: Any = model.base_model
        self._operations: Operations = TorchOperations()
        self._fused_forward: FusedForward | None = None
        self._stack = read_stack(self._decoder, self._find_group)
        output = model.get_output_embeddings()
        assert output is not None
        self._output = self._find_group([output])

    def __call__(self, ids_N: torch.Tensor, step: attention.Step, *, has_logits: bool) -> torch.Tensor:
        """Return the logits [N, V], or the last hidden states [N, H]."""

        def attend(
            layer: int,
            q_THD: torch.Tensor,
            k_TKD: torch.Tensor,
            v_TKD: torch.Tensor,
            *,
            scale: float,
            window: int | None,
        ) -> torch.Tensor:
            q_HTD, k_KTD, v_KTD = (one.transpose(0, 1) for one in (q_THD, k_TKD, v_TKD))
            settings = attention.LayerSettings(scale, window)
            return attention.attend_paged(layer, q_HTD, k_KTD, v_KTD, step, settings)

        embedded_1NH = self._decoder.embed_tokens(ids_N[None])
        angles = read_angles(self._decoder, self._stack, embedded_1NH, step.positions_N[None])
        if self._fused_forward is not None and not step.is_prefill:
            hidden_NH = self._fused_forward(self._stack, embedded_1NH[0], step, angles)
        else:
            hidden_NH = forward(self._stack, embedded_1NH[0], DecoderStep(self._operations, attend, angles))
        return self.logits(hidden_NH) if has_logits else hidden_NH

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, V] of last hidden states."""
        return self._output.product(hidden_NH)

    def use_kernels(self) -> ExitStack:
        """Compute all but the large products by Triton kernels. Returns what undoes it."""
        from worker.decoder.fused_operations import FusedOperations
        from worker.inference.model import fused_steps

        undo = ExitStack()
        undo.callback(setattr, self, "_operations", self._operations)
        undo.callback(setattr, self, "_fused_forward", None)
        self._operations = FusedOperations()
        self._fused_forward = fused_steps.forward
        return undo

    def _find_group(self, linears: Sequence[nn.Module]) -> MergedLinears:
        names = [self._names[linear] for linear in linears]
        group = self._groups_by_layer.get(names[0])
        if group is None or group.names != names:
            raise Unsupported(f"the linear layers {', '.join(names)}, which can't be merged")
        return group


class TransformersPath:
    """Computes a model by its own code, with the attention and linear layers replaced in place."""

    # Some models scale or cap their logits in `forward`.
    has_logits_alone = False

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises ModelUnsupported."""
        self._model = model
        model.set_attn_implementation(attention.NAME)
        if model.config._attn_implementation != attention.NAME:
            raise ModelUnsupported(f"{type(model).__name__} does not let its attention be replaced.")
        self.groups = replace_forwards(model)

    def __call__(self, ids_N: torch.Tensor, step: attention.Step, *, has_logits: bool) -> torch.Tensor:
        """Return the logits [N, V], or the last hidden states [N, H]."""
        model = self._model if has_logits else self._model.base_model
        output = model(input_ids=ids_N[None], position_ids=step.positions_N[None], use_cache=False, step=step)
        first: torch.Tensor = output[0][0]
        return first

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Raises NotImplementedError."""
        raise NotImplementedError

    def use_kernels(self) -> ExitStack:
        """Replace modules and functions where a kernel gives the same. Returns what undoes it."""
        from worker.inference.model import fused

        return fused.install(self._model)
