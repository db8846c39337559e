"""Writes a merged model as one GGUF file for llama.cpp, tensor by tensor, with the `gguf` package.

The weights of K-quants and IQ4_XS are rounded by llama.cpp's own quantizer.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from transformers import PreTrainedTokenizerBase

from app.core.specs.export import GgufType
from worker.exports.gguf import quantizer
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.importance import ImportanceMatrix
from worker.exports.gguf.tensor_types import choose_types
from worker.exports.gguf.tokenizer import read_vocabulary
from worker.exports.merged.checkpoint import TensorSpec

_FILE_TYPES = {
    GgufType.F16: LlamaFileType.MOSTLY_F16,
    GgufType.BF16: LlamaFileType.MOSTLY_BF16,
    GgufType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GgufType.Q5_1: LlamaFileType.MOSTLY_Q5_1,
    GgufType.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    GgufType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    GgufType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GgufType.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    GgufType.Q5_K_M: LlamaFileType.MOSTLY_Q5_K_M,
    GgufType.Q4_K_M: LlamaFileType.MOSTLY_Q4_K_M,
    GgufType.IQ4_XS: LlamaFileType.MOSTLY_IQ4_XS,
    GgufType.Q3_K_M: LlamaFileType.MOSTLY_Q3_K_M,
}
_UNROUNDED = {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
_CHUNK_NUMBERS = 1 << 24


class TensorSource(Protocol):
    """A checkpoint on disk, or a merge computed while it is read."""

    @property
    def tensors(self) -> list[TensorSpec]:
        """All tensors."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""


Change = Callable[[str, torch.Tensor], torch.Tensor]
RoundRows = Callable[[npt.NDArray[np.float32], GGMLQuantizationType], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file, and the functions that read its values and turn them into bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    read: Callable[[], torch.Tensor]
    round_rows: RoundRows = gguf.quantize


def write_gguf(
    source: TensorSource,
    path: Path,
    *,
    layout: GgufLayout,
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    type: GgufType,
    importance: ImportanceMatrix | None = None,
    change: Change = lambda name, weight: weight,
    announce: Callable[[int], None] = lambda elements: None,
) -> None:
    """Write the file. `change` may replace a tensor, named and laid out as in the file.

    Raises GgufFamilyUnknown, QuantizerMissing and TokenizerUnfit before anything is written.
    """
    if type.is_mixture:
        quantizer.check_quantizer()
    planned = list(_plan(source, layout, type, importance, change))
    vocabulary = read_vocabulary(tokenizer, layout.config.vocab_size)
    writer = GGUFWriter(path, layout.arch_name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(title)
    writer.add_file_type(_FILE_TYPES[type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if importance is not None:
        _write_importance_keys(writer, importance)
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
            writer.write_tensor_data(_encode(tensor))
            written += int(np.prod(tensor.shape))
            announce(written)


def plan_tensor(name: str, tensor: torch.Tensor, type: GGMLQuantizationType) -> _Planned:
    """Plan a tensor that is in memory already."""
    return _Planned(name, tuple(tensor.shape), type, lambda: tensor)


def _write_importance_keys(writer: GGUFWriter, importance: ImportanceMatrix) -> None:
    """Write the keys that llama-quantize writes of an importance matrix."""
    writer.add_string("quantize.imatrix.dataset", "rows that the adapter was trained on")
    writer.add_uint32("quantize.imatrix.entries_count", len(importance.weights))
    writer.add_uint32("quantize.imatrix.chunks_count", importance.rows)


def _encode(tensor: _Planned) -> npt.NDArray[np.uint8]:
    """Read a tensor and round it to its type, some rows at a time. Returns its bytes."""
    values = tensor.read()
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, _CHUNK_NUMBERS // rows.shape[1])
    parts = [
        np.ascontiguousarray(tensor.round_rows(part.float().numpy(), tensor.type)).view(np.uint8)
        for part in rows.split(step)
    ]
    return np.concatenate(parts)


def _plan(
    source: TensorSource,
    layout: GgufLayout,
    type: GgufType,
    importance: ImportanceMatrix | None,
    change: Change,
) -> Iterator[_Planned]:
    for name, tensor in layout.extra_tensors().items():
        yield plan_tensor(name, tensor, GGMLQuantizationType.F32)
    chosen = choose_types(source.tensors, layout, type, has_importance=importance is not None)
    weights = importance.weights if importance is not None else {}
    for spec in source.tensors:
        name = layout.name(spec.name)
        is_rounded = type.is_mixture and chosen[name].type not in _UNROUNDED
        yield _Planned(
            name,
            spec.shape,
            chosen[name].type,
            _reader(source, layout, spec, change),
            partial(quantizer.quantize, importance_N=weights.get(name)) if is_rounded else gguf.quantize,
        )


def _reader(
    source: TensorSource, layout: GgufLayout, spec: TensorSpec, change: Change
) -> Callable[[], torch.Tensor]:
    name = layout.name(spec.name)
    return lambda: change(name, layout.arrange(spec.name, source.read(spec.name)))
