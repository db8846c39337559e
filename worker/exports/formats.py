"""Makes the files of each format, and says what loads them. The order of things stands in run.py."""

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
from worker.exports.checkpoint import Checkpoint
from worker.exports.gguf import lora as gguf_lora
from worker.exports.gguf.families import Layout
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
class Made:
    """What was made: the folder to hand out, and how its files are loaded."""

    folder: Path
    load: Load
    loaded_with: str = "transformers"


@dataclass(frozen=True)
class Materials:
    """Everything that an export is made of, found and checked before anything is written."""

    request: ExportRequest
    base: Path
    announce: Announce
    weights: AdapterWeights | None  # None: the adapter goes out as it is
    shape: BaseShape
    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    layout: Layout | None = field(default=None)

    @classmethod
    def gather(cls, request: ExportRequest, base: Path, announce: Announce) -> "Materials":
        """Raises ExportFailure, JobFailure where the base model can't be read."""
        spec, shape = request.spec, read_shape(base)
        is_whole = isinstance(spec, AdapterArchive) or (
            isinstance(spec, HubSpec) and spec.content == "adapter"
        )
        layout = None
        tokenizer = model_files.load_tokenizer(request.adapter_folder, base, shape)
        if isinstance(spec, GgufSpec | GgufLoraSpec):
            layout = Layout.of(shape.config)
            read_vocabulary(tokenizer, shape.config.vocab_size)
        weights = None if is_whole else read_adapter(request.adapter_folder)
        if weights is not None and isinstance(spec, GgufLoraSpec):
            gguf_lora.check(weights)
        found = cls(request, base, announce, weights, shape, Checkpoint(base), tokenizer, layout)
        if weights is not None and layout is not None and not found.merger.is_tied:
            layout.check_untied()
        return found

    @cached_property
    def merger(self) -> Merger:
        """The merge as the spec wants it. Raises BaseModelChanged."""
        assert self.weights is not None
        return Merger(self.checkpoint, self.shape, self.weights, self.rounding)

    @property
    def rounding(self) -> BitsAndBytesConfig | None:
        """How base weights go through 4 bits, where they do."""
        is_original = getattr(self.request.spec, "base", None) is BaseWeights.ORIGINAL
        if is_original or not self.request.quantization.load_in_4bit:
            return None
        return base_model.quantization_config(self.request.quantization, find_device())

    @property
    def dtype(self) -> torch.dtype:
        """Of a merged model's weights."""
        return model_files.output_dtype(getattr(self.request.spec, "dtype", "auto"), self.shape.config)

    @property
    def merge_key(self) -> str:
        """Says of a merged model what it was made of: another attempt may use it."""
        files = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.base.iterdir()
        )
        spec = self.request.spec
        key = {
            "adapter": self.request.adapter_id,
            "base": files,
            "rounded": self.rounding is not None,
            "dtype": str(self.dtype),
            "max_shard_bytes": getattr(spec, "max_shard_bytes", _SHARD_BYTES),
        }
        return json.dumps(key, indent=2)

    @property
    def has_merged(self) -> bool:
        """Whether an earlier attempt left the merged model that this one needs."""
        record = self.request.merge_record
        return self.request.merged.is_dir() and record.is_file() and record.read_text() == self.merge_key

    @property
    def name(self) -> str:
        """Of the files."""
        return file_stem(self.request.adapter_name)

    def progress(self, phase: ExportPhase, elements: int) -> Callable[[int], None]:
        """Announces how much of a phase is done, by the numbers that it has written."""
        return lambda written: self.announce(phase, written / max(elements, 1))


def make(materials: Materials) -> Made:
    """Make the files. Raises ExportFailure."""
    match materials.request.spec:
        case AdapterArchive(archive=kind):
            return _archive(materials, kind)
        case HubSpec(content="adapter"):
            return Made(
                materials.request.adapter_folder, _live(materials, materials.request.adapter_folder), "peft"
            )
        case PytorchBinSpec() as spec:
            return _make_bin(materials, spec)
        case GgufSpec() as spec:
            return _make_gguf(materials, spec)
        case GgufLoraSpec() as spec:
            return _make_gguf_lora(materials, spec)
        case _:
            merged = _merge(materials)
            return Made(merged, partial(verification.load_safetensors, merged))


def _merge(materials: Materials) -> Path:
    """The merged model, made now or by an earlier attempt; it stays until the export has succeeded."""
    kept = materials.request.merged
    if materials.has_merged:
        return kept
    merger, dtype = materials.merger, materials.dtype
    materials.announce(ExportPhase.MERGING, 0.0)
    with appearing(materials.request.folder / "merged") as staging:
        merge(
            merger,
            staging,
            dtype=dtype,
            max_shard_bytes=getattr(materials.request.spec, "max_shard_bytes", _SHARD_BYTES),
            announce=materials.progress(ExportPhase.MERGING, materials.checkpoint.elements),
        )
        model_files.write_surroundings(
            staging,
            base=materials.base,
            adapter=materials.request.adapter_folder,
            dtype=dtype,
            is_tied=merger.is_tied,
        )
    shutil.rmtree(kept, ignore_errors=True)
    materials.request.merge_record.write_text(materials.merge_key)
    return (materials.request.folder / "merged").rename(kept)


def _make_bin(materials: Materials, spec: PytorchBinSpec) -> Made:
    merged = _merge(materials)
    folder = _output(materials)
    checkpoint = Checkpoint(merged)
    pytorch_bin.write_bin(
        checkpoint,
        folder,
        dtype=materials.dtype,
        max_shard_bytes=spec.max_shard_bytes,
        announce=materials.progress(ExportPhase.CONVERTING, checkpoint.elements),
    )
    model_files.copy_surroundings(merged, folder)
    return Made(folder, partial(verification.load_bin, folder))


def _make_gguf(materials: Materials, spec: GgufSpec) -> Made:
    assert materials.layout is not None
    checkpoint = Checkpoint(_merge(materials))
    path = _output(materials) / f"{materials.name}-{spec.type}.gguf"
    write_gguf(
        checkpoint,
        path,
        layout=materials.layout,
        tokenizer=materials.tokenizer,
        title=materials.name,
        type=spec.type,
        announce=materials.progress(ExportPhase.CONVERTING, checkpoint.elements),
    )
    return Made(path.parent, partial(verification.load_gguf, path, materials.layout.run_as))


def _make_gguf_lora(materials: Materials, spec: GgufLoraSpec) -> Made:
    """The file, and for the proof a GGUF of the base model to which it is applied as llama.cpp does it."""
    assert materials.layout is not None
    assert materials.weights is not None
    path = _output(materials) / f"{materials.name}-lora-{spec.type}.gguf"
    gguf_lora.write_gguf_lora(
        materials.weights, path, layout=materials.layout, title=materials.name, type=spec.type
    )
    lora = gguf_lora.LoraFile(path)
    applied = materials.request.folder / "applied.gguf"
    bare = AdapterWeights({}, {}, alpha=1.0, use_rslora=False)
    write = partial(
        write_gguf,
        Merger(materials.checkpoint, materials.shape, bare, materials.rounding),
        layout=materials.layout,
        tokenizer=materials.tokenizer,
        type=GgufType.BF16 if materials.dtype is torch.bfloat16 else GgufType.F16,
        announce=materials.progress(ExportPhase.CONVERTING, materials.checkpoint.elements),
    )
    write(applied, title=materials.name, change=lora.apply)
    lora.check_applied()
    if spec.with_base:
        write(path.with_name(f"{materials.name}-base.gguf"), title=materials.request.base_model)
    return Made(
        path.parent,
        partial(verification.load_gguf, applied, materials.layout.run_as),
        "transformers, from a GGUF file of the base model with the adapter's added as llama.cpp adds them",
    )


def _archive(materials: Materials, kind: str) -> Made:
    """The archive, and what it unpacks to."""
    source, name = materials.request.adapter_folder, materials.name
    path = _output(materials) / f"{name}.{kind}"
    unpacked = materials.request.folder / "unpacked"
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
    return Made(path.parent, _live(materials, unpacked / name), "peft")


def _live(materials: Materials, adapter: Path) -> Load:
    return lambda dtype: verification.load_live(
        materials.base, adapter, materials.request.quantization, dtype
    )


def _output(materials: Materials) -> Path:
    materials.announce(ExportPhase.CONVERTING, 0.0)
    folder = materials.request.folder / "output"
    folder.mkdir()
    return folder
