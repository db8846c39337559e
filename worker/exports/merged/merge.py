"""Merges an adapter into its base model, some rows at a time, on the CPU, without loading the model.

Peak memory is that of the adapter, a few megabytes, and half a byte for each element of the largest tensor
that is rounded to 4 bits, whatever the model's size. O: outputs, I: inputs of a linear layer.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.core.errors.base_models import BaseModelChanged
from app.core.errors.exports import ExportUnsupported
from worker.exports.merged.adapter_weights import AdapterWeights
from worker.exports.merged.checkpoint import SafetensorsCheckpoint, TensorSpec, write_checkpoint
from worker.models.base_model import linears_to_quantize
from worker.models.files import prequantized
from worker.models.files.description import build_empty
from worker.models.nf4_roundtrip import check_kernel, round_rows, rows_at_a_time
from worker.models.peft_adapters import LoraUpdate


@dataclass(frozen=True)
class BaseShape:
    """The base model's config and modules, without weights."""

    config: PreTrainedConfig
    model: PreTrainedModel  # on the device `meta`

    @property
    def output_weight(self) -> str | None:
        """The name of the output layer's weight."""
        output = self.model.get_output_embeddings()
        return self._name_of(output) if output is not None else None

    @property
    def input_weight(self) -> str:
        """The name of the embedding's weight."""
        return self._name_of(self.model.get_input_embeddings())

    @property
    def is_tied(self) -> bool:
        """Whether the output layer shares the embedding's weight."""
        return bool(self.config.get_text_config().tie_word_embeddings)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """All modules by their names."""
        return dict(self.model.named_modules())

    def _name_of(self, wanted: nn.Module) -> str:
        return next(f"{name}.weight" for name, module in self.modules.items() if module is wanted)


def read_shape(folder: Path) -> BaseShape:
    """Read the base model's config and modules.

    Raises ModelUnreadable, and ExportUnsupported for a base model whose own weights are quantized.
    """
    model = build_empty(folder)
    config = model.config
    if prequantized.find_format(config) is not None:
        raise ExportUnsupported(
            f"The base model {folder.name!r} holds quantized weights, into which nothing can be merged.",
            hint="Train on the 16-bit model it was made from; or export the adapter alone.",
        )
    return BaseShape(config, model)


@dataclass(frozen=True)
class Merger:
    """Computes the tensors of the merged model.

    With `quantization`, base weights are first rounded to 4 bits and back; None: they stay as they are.
    """

    checkpoint: SafetensorsCheckpoint
    shape: BaseShape
    adapter: AdapterWeights
    quantization: BitsAndBytesConfig | None = None

    def __post_init__(self) -> None:
        """Raise BaseModelChanged where the adapter does not fit the base model."""
        for module, change in self.adapter.changes.items():
            name = f"{module}.weight"
            if name in (self.shape.output_weight, self.shape.input_weight):
                raise ExportUnsupported(
                    "An adapter on the embeddings or on the output layer (lm_head) can't be merged.",
                    hint="lora.target_modules names layers to train instead. modules_to_save can be merged.",
                )
            rows, columns = change.B_OR.shape[0], change.A_RI.shape[1]
            found = self._find_shape(name, module)
            if found != (rows, columns):
                self._refuse(f"{module} is {_by(found)} there, and {_by((rows, columns))} in the adapter")
        for name, tensor in self.adapter.replaced.items():
            if name not in self.checkpoint and name != self.shape.output_weight:
                self._refuse(f"there is no {name}")
            if name in self.checkpoint and self.checkpoint.shape(name) != tuple(tensor.shape):
                self._refuse(f"{name} has another shape")
        if self.quantization is not None:
            check_kernel(linears_to_quantize(self.shape.model).values(), self.quantization)

    @property
    def is_tied(self) -> bool:
        """Whether the merged model's embeddings are tied; training one of the two whole unties them."""
        trained = {self.shape.input_weight, self.shape.output_weight} & set(self.adapter.replaced)
        return self.shape.is_tied and not trained

    @property
    def tensors(self) -> list[TensorSpec]:
        """The tensors of the merged model."""
        output, found = self.shape.output_weight, self.checkpoint.tensors
        if output is None or not self.shape.is_tied:
            return found
        # A checkpoint may hold a second copy of a tied output layer.
        found = [tensor for tensor in found if tensor.name != output]
        if self.is_tied:
            return found
        return [*found, TensorSpec(output, self.checkpoint.shape(self.shape.input_weight))]

    def read(self, name: str) -> torch.Tensor:
        """One tensor of the merged model, whole."""
        first, *others = self.read_rows(name)
        return torch.cat([first, *others]) if others else first

    def read_rows(self, name: str) -> Iterator[torch.Tensor]:
        """One tensor of the merged model in blocks of rows, in order; each is computed when requested."""
        module = name.removesuffix(".weight")
        change = self.adapter.changes.get(module) if name.endswith(".weight") else None
        is_rounded = self.quantization is not None and module in self._quantized_modules
        weight = self._read_source(name)
        if name in self.adapter.replaced or (change is None and not is_rounded):
            yield weight
        elif isinstance(self.shape.modules.get(module), Conv1D):
            # Conv1D stores outputs as columns: a block of rows needs every output.
            yield torch.cat(list(self._change_rows(weight.T, change, is_rounded=is_rounded))).T
        else:
            yield from self._change_rows(weight, change, is_rounded=is_rounded)

    def _read_source(self, name: str) -> torch.Tensor:
        """The base model's tensor, or the one that training replaced it with."""
        if name in self.adapter.replaced:
            return self.adapter.replaced[name]
        is_output = name == self.shape.output_weight and self.shape.is_tied
        return self.checkpoint.read(self.shape.input_weight if is_output else name)

    def _change_rows(
        self, weight_OI: torch.Tensor, change: LoraUpdate | None, *, is_rounded: bool
    ) -> Iterator[torch.Tensor]:
        blocks: Iterable[torch.Tensor] = weight_OI.split(rows_at_a_time(weight_OI.shape[1]))
        if is_rounded:
            assert self.quantization is not None
            blocks = round_rows(weight_OI, self.quantization, torch.float32)
        first = 0
        for block in blocks:
            last = first + len(block)
            yield change.of_rows(first, last).apply(block) if change else block
            first = last

    @cached_property
    def _quantized_modules(self) -> frozenset[str]:
        return frozenset(linears_to_quantize(self.shape.model))

    def _find_shape(self, name: str, module: str) -> tuple[int, ...]:
        if name not in self.checkpoint:
            self._refuse(f"there is no {module}")
        found = self.checkpoint.shape(name)
        return found[::-1] if isinstance(self.shape.modules.get(module), Conv1D) else found

    def _refuse(self, reason: str) -> None:
        raise BaseModelChanged(
            f"The adapter does not fit the base model in {self.checkpoint.folder.name!r}: {reason}.",
            hint="Put the base model that it was trained on back into the models folder.",
        )


def merge(
    merger: Merger,
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int,
    announce: Callable[[int], None] = lambda elements: None,
) -> None:
    """Write the merged model's weights into the folder. Raises ExportUnsupported."""

    def read_rows(name: str) -> Iterator[torch.Tensor]:
        for block in merger.read_rows(name):
            for rows in block.split(rows_at_a_time(math.prod(block.shape[1:]))):
                finite = rows.to(dtype)
                if not finite.isfinite().all():
                    raise ExportUnsupported(
                        f"{name} does not fit into {str(dtype).removeprefix('torch.')}: it becomes infinite.",
                        hint='Ask for dtype "bfloat16".',
                    )
                yield finite

    write_checkpoint(
        folder,
        merger.tensors,
        read_rows,
        dtype_of=lambda _name: dtype,
        max_shard_bytes=max_shard_bytes,
        announce=announce,
    )


def _by(shape: tuple[int, ...]) -> str:
    return " by ".join(str(size) for size in shape)
