"""All layers of a trained decoder and the norm behind them, as one autograd function.

Nothing passes between layers but the residual stream and its gradient. With checkpoints a layer's input is
all that is saved, and its forward pass is repeated, with the same random numbers, before its gradients.

T: tokens. H: the hidden size.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from worker.decoder import gradients, stack as whole
from worker.decoder.layer import DecoderStep, Layer, LayerState, forward, forward_until_down
from worker.decoder.lora_linears import LoraLinears
from worker.decoder.random_state import RandomState
from worker.decoder.stack import DecoderStack

TrainedLayer = Layer[LoraLinears]
TrainedStack = DecoderStack[LoraLinears]


def compute(
    stack: TrainedStack, embedded_TH: torch.Tensor, step: DecoderStep, *, checkpoints: bool
) -> torch.Tensor:
    """Return the normed hidden states [T, H]; gradients reach the adapters and the embedded tokens.

    Adapters are read from the copies that `LoraLinears.copy_adapters` lists.
    """
    if not torch.is_grad_enabled():
        return whole.forward(stack, embedded_TH, step)
    parameters = [parameter for one in projections_of(stack) for parameter in one.parameters]
    hidden_TH: torch.Tensor = _Compute.apply(
        embedded_TH, stack, replace(step, needs_gradients=True), checkpoints, *parameters
    )
    return hidden_TH


def projections_of(stack: TrainedStack) -> list[LoraLinears]:
    """All linear layers, by their inputs."""
    return [one for layer in stack.layers for one in gradients.projections_of(layer)]


@dataclass
class _Checkpoint:
    stream_TH: torch.Tensor
    random: RandomState


class _Compute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embedded_TH: torch.Tensor,
        stack: TrainedStack,
        step: DecoderStep,
        checkpoints: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        stream_TH, states = embedded_TH.detach(), list[LayerState | _Checkpoint]()
        device = embedded_TH.device.type
        with torch.autocast(device, enabled=False):
            for layer in stack.layers:
                checkpoint = _Checkpoint(stream_TH, RandomState()) if checkpoints else None
                stream_TH, state = forward(layer, stream_TH, step)
                states.append(checkpoint or state)
                del state  # with checkpoints its memory is free for the next layer
            hidden_TH, factor_T = step.operations.norm(stream_TH, stack.norm)
        ctx.stack, ctx.step, ctx.states = stack, step, states
        ctx.save_for_backward(stream_TH, factor_T)
        return hidden_TH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        stack, step, states = ctx.stack, ctx.step, ctx.states
        stream_TH, factor_T = ctx.saved_tensors
        paddings = [0, *(gradients.padding_of(layer) for layer in stack.layers)]
        found: list[list[torch.Tensor]] = []
        grad: torch.Tensor | None
        with torch.autocast(grad_TH.device.type, enabled=False):
            grad = step.operations.norm_gradient(
                grad_TH.contiguous(), None, stream_TH, stack.norm, factor_T, padding=paddings[-1]
            )
            for number in reversed(range(len(stack.layers))):
                state = states.pop()  # its memory is free once the gradients exist
                if isinstance(state, _Checkpoint):
                    state = _repeat(stack.layers[number], state, step)
                assert grad is not None
                grad, of_parameters = gradients.backward(
                    stack.layers[number],
                    state,
                    grad,
                    step,
                    padding=paddings[number + 1],
                    next_padding=paddings[number],
                    needs_input=number > 0 or ctx.needs_input_grad[0],
                )
                del state
                found.append(of_parameters)
        return grad, None, None, None, *(one for of_layer in reversed(found) for one in of_layer)


def _repeat(layer: TrainedLayer, checkpoint: _Checkpoint, step: DecoderStep) -> LayerState:
    """The state of a layer's forward pass, computed again; its output is not."""
    after = RandomState()
    checkpoint.random.restore()
    if layer.mlp_output_norm is None:
        given, state = forward_until_down(layer, checkpoint.stream_TH, step)
        state.down = layer.down.save_input(given.active_TI, padding=given.padding)
    else:
        _output, state = forward(layer, checkpoint.stream_TH, step)
    after.restore()
    return state
