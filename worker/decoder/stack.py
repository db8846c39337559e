"""All layers of a decoder and the norm behind them.

T: tokens. H: the hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch

from worker.decoder import layer
from worker.decoder.layer import DecoderStep, Layer, ProjectionT
from worker.decoder.operations import Norm


@dataclass(frozen=True)
class DecoderStack(Generic[ProjectionT]):
    """The layers of a decoder, in order, and its last norm."""

    layers: Sequence[Layer[ProjectionT]]
    norm: Norm


def forward(stack: DecoderStack[ProjectionT], embedded_TH: torch.Tensor, step: DecoderStep) -> torch.Tensor:
    """Return the normed hidden states [T, H] of embedded tokens, without gradients."""
    stream_TH = embedded_TH
    for one in stack.layers:
        stream_TH, _state = layer.forward(one, stream_TH, step)
    return step.operations.norm(stream_TH, stack.norm)[0]
