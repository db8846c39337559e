"""Produces the files of each export format, and the functions that load them for verification."""

import tarfile
import zipfile
from functools import partial
from pathlib import Path

from app.core.specs.export import (
    AdapterArchive,
    CalibratedSpec,
    Fp8Spec,
    GgufLoraSpec,
    GgufSpec,
    HubSpec,
    PytorchBinSpec,
)
from app.core.specs.states import ExportPhase
from worker.exports import verification
from worker.exports.calibrated.export import produce_calibrated
from worker.exports.gguf.export import produce_gguf, produce_gguf_lora
from worker.exports.inputs import ExportInputs
from worker.exports.merged import fp8, model_files, pytorch_bin
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.folder import make_merged
from worker.exports.merged.linear_layers import find_linears
from worker.exports.produced import Load, ProducedFiles


def produce(inputs: ExportInputs) -> ProducedFiles:
    """Write the files of the requested format. Raises ExportFailure."""
    match inputs.request.spec:
        case AdapterArchive(archive=kind):
            return _archive(inputs, kind)
        case HubSpec(content="adapter"):
            folder = inputs.request.adapter_folder
            return ProducedFiles.of_one(folder, _adapter_loader(inputs, folder), "peft")
        case PytorchBinSpec() as spec:
            return _produce_bin(inputs, spec)
        case Fp8Spec() as spec:
            return _produce_fp8(inputs, spec)
        case CalibratedSpec() as spec:
            return produce_calibrated(inputs, spec)
        case GgufSpec() as spec:
            return produce_gguf(inputs, spec)
        case GgufLoraSpec() as spec:
            return produce_gguf_lora(inputs, spec)
        case _:
            merged = make_merged(inputs)
            return ProducedFiles.of_one(merged, partial(verification.load_safetensors, merged))


def _produce_bin(inputs: ExportInputs, spec: PytorchBinSpec) -> ProducedFiles:
    merged = make_merged(inputs)
    folder = inputs.make_output()
    checkpoint = SafetensorsCheckpoint(merged)
    pytorch_bin.write_bin(
        checkpoint,
        folder,
        dtype=inputs.dtype,
        max_shard_bytes=spec.max_shard_bytes,
        announce=inputs.progress(ExportPhase.CONVERTING, checkpoint.elements),
    )
    model_files.copy_companion_files(merged, folder)
    return ProducedFiles.of_one(folder, partial(verification.load_bin, folder))


def _produce_fp8(inputs: ExportInputs, spec: Fp8Spec) -> ProducedFiles:
    merged = make_merged(inputs)
    folder = inputs.make_output()
    checkpoint = SafetensorsCheckpoint(merged)
    fp8.write_fp8(
        checkpoint,
        folder,
        linears=find_linears(inputs.shape),
        dtype=inputs.dtype,
        max_shard_bytes=spec.max_shard_bytes,
        announce=inputs.progress(ExportPhase.CONVERTING, checkpoint.elements),
    )
    model_files.copy_companion_files(merged, folder)
    fp8.write_config(folder, inputs.shape)
    load = partial(verification.load_safetensors, folder)
    return ProducedFiles.of_one(folder, load, "transformers and compressed-tensors")


def _archive(inputs: ExportInputs, kind: str) -> ProducedFiles:
    """Write the archive, and unpack it for verification."""
    source, name = inputs.request.adapter_folder, inputs.name
    path = inputs.make_output() / f"{name}.{kind}"
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
    return ProducedFiles.of_one(path.parent, _adapter_loader(inputs, unpacked / name), "peft")


def _adapter_loader(inputs: ExportInputs, adapter: Path) -> Load:
    return lambda dtype: verification.load_live(inputs.base, adapter, inputs.request.quantization, dtype)
