"""What an export is made from: the request, the base model, the adapter, the tokenizer, the merge.

Everything is read and checked before anything is written.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

from app.core.exports.results import file_stem
from app.core.specs.export import (
    AdapterArchive,
    BaseWeights,
    CalibratedSpec,
    Fp8Spec,
    GgufLoraSpec,
    GgufSpec,
    HubSpec,
)
from app.core.specs.states import ExportPhase
from worker.exports.calibrated import groups
from worker.exports.calibrated.compressor import Compressor
from worker.exports.gguf import lora as gguf_lora
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.quantizer import check_quantizer
from worker.exports.gguf.tensor_types import count_bytes
from worker.exports.gguf.tokenizer import read_vocabulary
from worker.exports.merged import fp8, model_files
from worker.exports.merged.adapter_weights import AdapterWeights, read_adapter
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.linear_layers import check_linears, find_linears
from worker.exports.merged.merge import BaseShape, Merger, read_shape
from worker.exports.reports import ExportRequest
from worker.models import base_model
from worker.models.device import find_device

SHARD_BYTES = 5_000_000_000

Announce = Callable[[ExportPhase, float], None]


@dataclass(frozen=True)
class ExportInputs:
    """Everything that an export is made from, read and checked before anything is written."""

    request: ExportRequest
    base: Path
    announce: Announce
    weights: AdapterWeights | None  # None: the adapter's files are exported unchanged
    shape: BaseShape
    checkpoint: SafetensorsCheckpoint
    tokenizer: PreTrainedTokenizerBase
    layout: GgufLayout | None = field(default=None)

    @classmethod
    def gather(cls, request: ExportRequest, base: Path, announce: Announce) -> "ExportInputs":
        """Read and check the inputs.

        Raises ExportFailure, and JobFailure where the base model can't be read.
        """
        spec, shape = request.spec, read_shape(base)
        is_whole = isinstance(spec, AdapterArchive) or (
            isinstance(spec, HubSpec) and spec.content == "adapter"
        )
        layout = None
        tokenizer = model_files.load_tokenizer(request.adapter_folder, base, shape)
        if isinstance(spec, GgufSpec | GgufLoraSpec):
            layout = GgufLayout.of(shape.config)
            read_vocabulary(tokenizer, shape.config.vocab_size)
        if isinstance(spec, GgufSpec) and any(type.is_mixture for type in spec.types):
            check_quantizer()
        checkpoint = SafetensorsCheckpoint(base)
        if isinstance(spec, Fp8Spec):
            check_linears(shape, checkpoint.tensors, "FP8")
        if isinstance(spec, CalibratedSpec):
            groups.check_groups(shape, checkpoint.tensors, spec.format.upper())
            Compressor.of(request.llm_compressor, request.gpu).check()
        weights = None if is_whole else read_adapter(request.adapter_folder)
        if weights is not None and isinstance(spec, GgufLoraSpec):
            gguf_lora.check(weights)
        found = cls(request, base, announce, weights, shape, checkpoint, tokenizer, layout)
        if weights is not None and layout is not None and not found.merger.is_tied:
            layout.check_untied()
        return found

    @cached_property
    def merger(self) -> Merger:
        """The merge that the spec asks for. Raises BaseModelChanged."""
        assert self.weights is not None
        return Merger(self.checkpoint, self.shape, self.weights, self.quantization)

    @property
    def quantization(self) -> BitsAndBytesConfig | None:
        """The 4-bit quantization that base weights are rounded by; None: they stay as they are."""
        is_original = getattr(self.request.spec, "base", None) is BaseWeights.ORIGINAL
        if is_original or not self.request.quantization.load_in_4bit:
            return None
        return base_model.quantization_config(self.request.quantization, find_device())

    @property
    def dtype(self) -> torch.dtype:
        """The type of a merged model's weights."""
        return model_files.output_dtype(getattr(self.request.spec, "dtype", "auto"), self.shape.config)

    @property
    def merge_key(self) -> str:
        """Identifies the inputs of a merged model; a later attempt with the same key reuses it."""
        files = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.base.iterdir()
        )
        spec = self.request.spec
        key = {
            "adapter": self.request.adapter_id,
            "base": files,
            "rounded": self.quantization is not None,
            "dtype": str(self.dtype),
            "max_shard_bytes": getattr(spec, "max_shard_bytes", SHARD_BYTES),
        }
        return json.dumps(key, indent=2)

    @property
    def has_merged(self) -> bool:
        """Whether an earlier attempt left a merged model of the same key."""
        record = self.request.merge_record
        return self.request.merged.is_dir() and record.is_file() and record.read_text() == self.merge_key

    @property
    def name(self) -> str:
        """The stem of the files' names."""
        return file_stem(self.request.adapter_name)

    @property
    def converted_bytes(self) -> int:
        """The size of the tensors that a merged model is converted to, as GGUF, in FP8 or in 4 bits."""
        spec, tensors = self.request.spec, self.checkpoint.tensors
        linears = find_linears(self.shape)
        if isinstance(spec, Fp8Spec):
            return fp8.count_bytes(tensors, linears, self.dtype)
        if isinstance(spec, CalibratedSpec):
            size = groups.find_group_size(tensors, linears, spec.format.upper())
            return groups.count_bytes(tensors, linears, size, self.dtype)
        if not isinstance(spec, GgufSpec):
            return 0
        assert self.layout is not None
        return sum(count_bytes(tensors, self.layout, type) for type in spec.types)

    def make_output(self) -> Path:
        """Make the folder for the export's files."""
        self.announce(ExportPhase.CONVERTING, 0.0)
        folder = self.request.folder / "output"
        folder.mkdir()
        return folder

    def progress(
        self, phase: ExportPhase, elements: int, *, part: int = 0, parts: int = 1
    ) -> Callable[[int], None]:
        """A callback that announces the phase's progress from the number of elements written.

        `part` of `parts` is the file that is written, of several that take as long.
        """
        return lambda written: self.announce(phase, (part + written / max(elements, 1)) / parts)
