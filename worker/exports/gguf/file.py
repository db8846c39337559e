"""Writes a merged model as one GGUF file for llama.cpp, tensor by tensor, with the `gguf` package."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from transformers import PreTrainedTokenizerBase

from app.core.specs.export import GgufType
from worker.exports.checkpoint import TensorSpec
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.tokenizer import read_vocabulary

_FILE_TYPES = {
    GgufType.F16: LlamaFileType.MOSTLY_F16,
    GgufType.BF16: LlamaFileType.MOSTLY_BF16,
    GgufType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GgufType.Q5_1: LlamaFileType.MOSTLY_Q5_1,
    GgufType.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    GgufType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    GgufType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}
_FEW_BITS = {GgufType.Q4_0, GgufType.Q4_1, GgufType.Q5_0, GgufType.Q5_1}
_EMBEDDINGS = ("token_embd.weight", "output.weight")
_CHUNK_NUMBERS = 1 << 24


class TensorSource(Protocol):
    """A checkpoint on disk, or a merge computed while it is read."""

    @property
    def tensors(self) -> list[TensorSpec]:
        """All tensors."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""


Change = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file, and the function that reads its values."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    read: Callable[[], torch.Tensor]


def write_gguf(
    source: TensorSource,
    path: Path,
    *,
    layout: GgufLayout,
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    type: GgufType,
    change: Change = lambda name, weight: weight,
    announce: Callable[[int], None] = lambda elements: None,
) -> None:
    """Write the file. `change` may replace a tensor, named and laid out as in the file.

    Raises GgufFamilyUnknown and TokenizerUnfit before anything is written.
    """
    planned = list(_plan(source, layout, type, change))
    vocabulary = read_vocabulary(tokenizer, layout.config.vocab_size)
    writer = GGUFWriter(path, layout.arch_name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(title)
    writer.add_file_type(_FILE_TYPES[type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    layout.write_keys(writer)
    vocabulary.write(writer, tokenizer)
    write_tensors(writer, planned, announce)


def write_tensors(
    writer: GGUFWriter, planned: list[_Planned], announce: Callable[[int], None] = lambda elements: None
) -> None:
    """Write the header and the tensors of a file whose keys are set, and close it."""
    for tensor in planned:
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type)
        size = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, raw_dtype=tensor.type)
    written = 0
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(encode(tensor.read(), tensor.type))
            written += int(np.prod(tensor.shape))
            announce(written)


def plan_tensor(name: str, tensor: torch.Tensor, type: GGMLQuantizationType) -> _Planned:
    """Plan a tensor that is in memory already."""
    return _Planned(name, tuple(tensor.shape), type, lambda: tensor)


def encode(tensor: torch.Tensor, type: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Quantize a tensor to a GGUF type, some rows at a time. Returns its bytes."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, _CHUNK_NUMBERS // rows.shape[1])
    parts = [
        np.ascontiguousarray(gguf.quantize(part.float().numpy(), type)).view(np.uint8)
        for part in rows.split(step)
    ]
    return np.concatenate(parts)


def _plan(source: TensorSource, layout: GgufLayout, type: GgufType, change: Change) -> Iterator[_Planned]:
    for name, tensor in layout.extra_tensors().items():
        yield plan_tensor(name, tensor, GGMLQuantizationType.F32)
    for spec in source.tensors:
        name = layout.name(spec.name)
        yield _Planned(
            name, spec.shape, _choose_type(name, spec, type), _reader(source, layout, spec, change)
        )


def _reader(
    source: TensorSource, layout: GgufLayout, spec: TensorSpec, change: Change
) -> Callable[[], torch.Tensor]:
    name = layout.name(spec.name)
    return lambda: change(name, layout.arrange(spec.name, source.read(spec.name)))


def _choose_type(name: str, spec: TensorSpec, type: GgufType) -> GGMLQuantizationType:
    """The GGUF type of one tensor.

    Vectors are float32. Embeddings have at least 8 bits. Rows that are no multiple of the block have 16.
    """
    if len(spec.shape) == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[type.name]
    if type in _FEW_BITS and name in _EMBEDDINGS:
        wanted = GGMLQuantizationType.Q8_0
    block, _size = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if spec.shape[-1] % block == 0 else GGMLQuantizationType.F16
