"""The importance matrix of a model: how much each input of a linear layer is used by rows of a dataset.

The importance of an input is the mean of its square over all tokens, as in llama.cpp's llama-imatrix
(https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix); here it is measured in transformers, which
computes what the GGUF file computes. I: inputs of a layer. T: tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from worker.exports.gguf.families import GgufLayout


@dataclass(frozen=True)
class ImportanceMatrix:
    """The importance of each input by the name of the layer's tensor, and what it was measured on."""

    weights: dict[str, npt.NDArray[np.float32]]
    rows: int
    tokens: int


def measure(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    layout: GgufLayout,
    announce: Callable[[float], None] = lambda progress: None,
) -> ImportanceMatrix:
    """Run the rows' token ids through the model and measure the inputs of its layers.

    The output layer is left out, as llama-imatrix leaves it out.
    """
    sums: dict[str, torch.Tensor] = {}
    output = model.get_output_embeddings()
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and module is not output:
                hook = module.register_forward_pre_hook(_adder(sums, layout.name(f"{name}.weight")))
                hooks.callback(hook.remove)
        for done, row in enumerate(rows, 1):
            model.model(input_ids=torch.tensor([list(row)]), use_cache=False)
            announce(done / len(rows))
    tokens = sum(len(row) for row in rows)
    weights = {name: (total / tokens).float().numpy() for name, total in sums.items()}
    return ImportanceMatrix(weights, len(rows), tokens)


def _adder(sums: dict[str, torch.Tensor], name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
    def add(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values_TI = inputs[0].reshape(-1, inputs[0].shape[-1])
        squares_I = values_TI.float().square().sum(0).double()
        sums[name] = sums[name] + squares_I if name in sums else squares_I

    return add
