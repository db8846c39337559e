"""A decoder layer as Llama has it, and Mistral, Qwen 2, Qwen 3, Phi-3 and Gemma 3 with other norms or fused
projections. Training and serving compute it, each with projections, operations and attention of its own.

T: tokens. H: the hidden size. I: the width of the MLP. H, K (in THD, TKD): heads of queries and of keys. D:
the width of a head. O: outputs of a linear layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from worker.decoder.operations import Activation, Norm, Operations


class Projection(Protocol):
    """Linear layers that read one input, with whatever adapters are on them."""

    def input_padding(self) -> int:
        """How many elements should be free behind each row of the next input."""

    def forward(
        self, x_TI: torch.Tensor, plus_TO: torch.Tensor | None = None, *, padding: int = 0
    ) -> tuple[list[torch.Tensor], Any]:
        """Return the output of every layer, and what their gradients need; `plus_TO` is added to a single
        one.

        `padding`: so many elements behind each row of the input are free.
        """


ProjectionT = TypeVar("ProjectionT", bound=Projection)


class Attention(Protocol):
    """Attention over all tokens of a step, [T, H, D]. `window`: tokens attended to; None: all before."""

    def __call__(
        self,
        layer: int,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Heads:
    """Shape and settings of a layer's attention. `kind`: which angles rotate its heads."""

    queries: int
    keys: int
    width: int
    scale: float
    window: int | None
    kind: str | None

    @property
    def widths(self) -> list[int]:
        """Outputs of q, k and v."""
        return [self.queries * self.width, self.keys * self.width, self.keys * self.width]


@dataclass(frozen=True)
class Layer(Generic[ProjectionT]):
    """One layer. `qkv` has three outputs, or one that holds them side by side; so has `gate_up`, of two.

    Qwen 3 and Gemma 3 norm the heads of queries and keys; Gemma 3 also norms what is added to the stream.
    """

    index: int
    input_norm: Norm
    qkv: ProjectionT
    heads: Heads
    o: ProjectionT
    mlp_norm: Norm
    gate_up: ProjectionT
    activation: Activation
    down: ProjectionT
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    attended_norm: Norm | None = None
    mlp_output_norm: Norm | None = None


@dataclass(frozen=True)
class DecoderStep:
    """What is the same in all layers of a pass. `angles`: cosines and sines [T, D] by kind of attention.

    `needs_gradients`: attention is recorded by autograd, for `gradients.py`.
    """

    operations: Operations
    attend: Attention
    angles: dict[str | None, tuple[torch.Tensor, torch.Tensor]]
    needs_gradients: bool = False


@dataclass
class Normed:
    """A norm's input and the factor of each row."""

    x_TH: torch.Tensor
    factor_T: torch.Tensor


@dataclass
class LayerState:
    """What the gradients of a layer need of its forward pass."""

    input_norm: Normed
    qkv: Any
    query_norm: Normed | None
    key_norm: Normed | None
    q_THD: torch.Tensor
    k_TKD: torch.Tensor
    v_TKD: torch.Tensor
    attended_THD: torch.Tensor
    o: Any
    attended_norm: Normed | None
    mlp_norm: Normed
    gate_up: Any
    gate_TI: torch.Tensor
    up_TI: torch.Tensor
    down: Any = None
    mlp_output_norm: Normed | None = None


@dataclass(frozen=True)
class DownInput:
    """The input of the last projection, with `padding` free elements behind each row, and the stream."""

    active_TI: torch.Tensor
    padding: int
    middle_TH: torch.Tensor


def forward(
    layer: Layer[ProjectionT], stream_TH: torch.Tensor, step: DecoderStep
) -> tuple[torch.Tensor, LayerState]:
    """Return the residual stream behind the layer, and what its gradients need."""
    given, state = forward_until_down(layer, stream_TH, step)
    output_TH, state.down, state.mlp_output_norm = _add(
        step.operations, given.active_TI, layer.down, layer.mlp_output_norm, given.middle_TH, given.padding
    )
    return output_TH, state


def forward_until_down(
    layer: Layer[ProjectionT], stream_TH: torch.Tensor, step: DecoderStep
) -> tuple[DownInput, LayerState]:
    """Compute all of the layer but its last projection."""
    ops, heads = step.operations, layer.heads
    padding = layer.qkv.input_padding()
    normed_TH, input_factor_T = ops.norm(stream_TH, layer.input_norm, padding=padding)
    outputs, qkv = layer.qkv.forward(normed_TH, padding=padding)
    q_THD, k_TKD, v_TKD = (one.unflatten(1, (-1, heads.width)) for one in _split(outputs, heads.widths))
    q_THD, query_norm = _norm_heads(ops, q_THD, layer.query_norm)
    k_TKD, key_norm = _norm_heads(ops, k_TKD, layer.key_norm)
    q_THD, k_TKD = ops.rotate(q_THD, k_TKD, *step.angles[heads.kind])
    if step.needs_gradients:
        q_THD, k_TKD, v_TKD = (one.detach().requires_grad_() for one in (q_THD, k_TKD, v_TKD))
    with torch.set_grad_enabled(step.needs_gradients):
        attended_THD = step.attend(layer.index, q_THD, k_TKD, v_TKD, scale=heads.scale, window=heads.window)
    middle_TH, o, attended_norm = _add(
        ops, attended_THD.detach().flatten(1), layer.o, layer.attended_norm, stream_TH
    )
    padding = layer.gate_up.input_padding()
    normed_TH, mlp_factor_T = ops.norm(middle_TH, layer.mlp_norm, padding=padding)
    outputs, gate_up = layer.gate_up.forward(normed_TH, padding=padding)
    gate_TI, up_TI = _split(outputs, None)
    padding = layer.down.input_padding()
    active_TI = ops.activate(gate_TI, up_TI, layer.activation, padding=padding)
    return DownInput(active_TI, padding, middle_TH), LayerState(
        Normed(stream_TH, input_factor_T),
        qkv,
        query_norm,
        key_norm,
        q_THD,
        k_TKD,
        v_TKD,
        attended_THD,
        o,
        attended_norm,
        Normed(middle_TH, mlp_factor_T),
        gate_up,
        gate_TI,
        up_TI,
    )


def _split(outputs: Sequence[torch.Tensor], widths: list[int] | None) -> Sequence[torch.Tensor]:
    """The parts of a projection that has them side by side. `widths`: None for two equal ones."""
    if len(outputs) > 1:
        return outputs
    return outputs[0].chunk(2, dim=1) if widths is None else outputs[0].split(widths, dim=1)


def _norm_heads(
    ops: Operations, heads_THD: torch.Tensor, norm: Norm | None
) -> tuple[torch.Tensor, Normed | None]:
    if norm is None:
        return heads_THD, None
    x_ND = heads_THD.reshape(-1, heads_THD.shape[2])
    normed_ND, factor_N = ops.norm(x_ND, norm)
    return normed_ND.view(heads_THD.shape), Normed(x_ND, factor_N)


def _add(
    ops: Operations,
    x_TI: torch.Tensor,
    projection: Projection,
    norm: Norm | None,
    stream_TH: torch.Tensor,
    padding: int = 0,
) -> tuple[torch.Tensor, Any, Normed | None]:
    """The stream plus the projection of x; with a norm, plus the normed projection."""
    if norm is None:
        (output_TH,), saved = projection.forward(x_TI, stream_TH, padding=padding)
        return output_TH, saved, None
    (y_TH,), saved = projection.forward(x_TI, padding=padding)
    normed_TH, factor_T = ops.norm(y_TH, norm)
    return normed_TH.add_(stream_TH), saved, Normed(y_TH, factor_T)
