"""Produces the files of each export format, and the function that loads them for verification."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from app.core.exports.results import file_stem
from app.core.specs.export import (
    AdapterArchive,
    BaseWeights,
    GgufLoraSpec,
    GgufSpec,
    GgufType,
    HubSpec,
    PytorchBinSpec,
)
from app.core.specs.states import ExportPhase
from worker.atomic_folders import appearing
from worker.exports import model_files, pytorch_bin, verification
from worker.exports.adapter_weights import AdapterWeights, read_adapter
from worker.exports.checkpoint import SafetensorsCheckpoint
from worker.exports.gguf import lora as gguf_lora
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.file import write_gguf
from worker.exports.gguf.tokenizer import read_vocabulary
from worker.exports.merge import BaseShape, Merger, merge, read_shape
from worker.exports.reports import ExportRequest
from worker.models import base_model
from worker.models.device import find_device

_SHARD_BYTES = 5_000_000_000

Announce = Callable[[ExportPhase, float], None]
Load = Callable[[torch.dtype], PreTrainedModel]


@dataclass(frozen=True)
class ProducedFiles:
    """The folder with an export's files, and the function that loads them as a model."""

    folder: Path
    load: Load
    loaded_with: str = "transformers"


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
        weights = None if is_whole else read_adapter(request.adapter_folder)
        if weights is not None and isinstance(spec, GgufLoraSpec):
            gguf_lora.check(weights)
        found = cls(request, base, announce, weights, shape, SafetensorsCheckpoint(base), tokenizer, layout)
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
            "max_shard_bytes": getattr(spec, "max_shard_bytes", _SHARD_BYTES),
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

    def progress(self, phase: ExportPhase, elements: int) -> Callable[[int], None]:
        """A callback that announces the phase's progress from the number of elements written."""
        return lambda written: self.announce(phase, written / max(elements, 1))


def produce(inputs: ExportInputs) -> ProducedFiles:
    """Write the files of the requested format. Raises ExportFailure."""
    match inputs.request.spec:
        case AdapterArchive(archive=kind):
            return _archive(inputs, kind)
        case HubSpec(content="adapter"):
            return ProducedFiles(
                inputs.request.adapter_folder, _adapter_loader(inputs, inputs.request.adapter_folder), "peft"
            )
        case PytorchBinSpec() as spec:
            return _produce_bin(inputs, spec)
        case GgufSpec() as spec:
            return _produce_gguf(inputs, spec)
        case GgufLoraSpec() as spec:
            return _produce_gguf_lora(inputs, spec)
        case _:
            merged = _merge(inputs)
            return ProducedFiles(merged, partial(verification.load_safetensors, merged))


def _merge(inputs: ExportInputs) -> Path:
    """Return the merged model's folder, merging unless an earlier attempt did.

    It stays until the export has succeeded.
    """
    merged = inputs.request.merged
    if inputs.has_merged:
        return merged
    merger, dtype = inputs.merger, inputs.dtype
    inputs.announce(ExportPhase.MERGING, 0.0)
    with appearing(inputs.request.folder / "merged") as staging:
        merge(
            merger,
            staging,
            dtype=dtype,
            max_shard_bytes=getattr(inputs.request.spec, "max_shard_bytes", _SHARD_BYTES),
            announce=inputs.progress(ExportPhase.MERGING, inputs.checkpoint.elements),
        )
        model_files.write_companion_files(
            staging,
            base=inputs.base,
            adapter=inputs.request.adapter_folder,
            dtype=dtype,
            is_tied=merger.is_tied,
        )
    shutil.rmtree(merged, ignore_errors=True)
    inputs.request.merge_record.write_text(inputs.merge_key)
    return (inputs.request.folder / "merged").rename(merged)


def _produce_bin(inputs: ExportInputs, spec: PytorchBinSpec) -> ProducedFiles:
    merged = _merge(inputs)
    folder = _output(inputs)
    checkpoint = SafetensorsCheckpoint(merged)
    pytorch_bin.write_bin(
        checkpoint,
        folder,
        dtype=inputs.dtype,
        max_shard_bytes=spec.max_shard_bytes,
        announce=inputs.progress(ExportPhase.CONVERTING, checkpoint.elements),
    )
    model_files.copy_companion_files(merged, folder)
    return ProducedFiles(folder, partial(verification.load_bin, folder))


def _produce_gguf(inputs: ExportInputs, spec: GgufSpec) -> ProducedFiles:
    assert inputs.layout is not None
    checkpoint = SafetensorsCheckpoint(_merge(inputs))
    path = _output(inputs) / f"{inputs.name}-{spec.type}.gguf"
    write_gguf(
        checkpoint,
        path,
        layout=inputs.layout,
        tokenizer=inputs.tokenizer,
        title=inputs.name,
        type=spec.type,
        announce=inputs.progress(ExportPhase.CONVERTING, checkpoint.elements),
    )
    return ProducedFiles(path.parent, partial(verification.load_gguf, path, inputs.layout.run_as))


def _produce_gguf_lora(inputs: ExportInputs, spec: GgufLoraSpec) -> ProducedFiles:
    """Write the LoRA file and, for verification, a GGUF file of the base model with the LoRA file applied.

    It is applied as llama.cpp applies it.
    """
    assert inputs.layout is not None
    assert inputs.weights is not None
    path = _output(inputs) / f"{inputs.name}-lora-{spec.type}.gguf"
    gguf_lora.write_gguf_lora(inputs.weights, path, layout=inputs.layout, title=inputs.name, type=spec.type)
    lora = gguf_lora.LoraFile(path)
    applied = inputs.request.folder / "applied.gguf"
    bare = AdapterWeights({}, {}, alpha=1.0, use_rslora=False)
    write = partial(
        write_gguf,
        Merger(inputs.checkpoint, inputs.shape, bare, inputs.quantization),
        layout=inputs.layout,
        tokenizer=inputs.tokenizer,
        type=GgufType.BF16 if inputs.dtype is torch.bfloat16 else GgufType.F16,
        announce=inputs.progress(ExportPhase.CONVERTING, inputs.checkpoint.elements),
    )
    write(applied, title=inputs.name, change=lora.apply)
    lora.check_applied()
    if spec.with_base:
        write(path.with_name(f"{inputs.name}-base.gguf"), title=inputs.request.base_model)
    return ProducedFiles(
        path.parent,
        partial(verification.load_gguf, applied, inputs.layout.run_as),
        "transformers, from a GGUF file of the base model with the adapter's added as llama.cpp adds them",
    )


def _archive(inputs: ExportInputs, kind: str) -> ProducedFiles:
    """Write the archive, and unpack it for verification."""
    source, name = inputs.request.adapter_folder, inputs.name
    path = _output(inputs) / f"{name}.{kind}"
    unpacked = inputs.request.folder / "unpacked"
    files = sorted(file for file in source.iterdir() if file.is_file())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, f"{name}/{file.name}")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked)
    else:
        with tarfile.open(path, "w") as tar:
            for file in files:
                tar.add(file, f"{name}/{file.name}")
        with tarfile.open(path) as tar:
            tar.extractall(unpacked, filter="data")
    return ProducedFiles(path.parent, _adapter_loader(inputs, unpacked / name), "peft")


def _adapter_loader(inputs: ExportInputs, adapter: Path) -> Load:
    return lambda dtype: verification.load_live(inputs.base, adapter, inputs.request.quantization, dtype)


def _output(inputs: ExportInputs) -> Path:
    inputs.announce(ExportPhase.CONVERTING, 0.0)
    folder = inputs.request.folder / "output"
    folder.mkdir()
    return folder
