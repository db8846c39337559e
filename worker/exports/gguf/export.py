"""Produces GGUF files of a merged model, one a type, and LoRA files for llama.cpp."""

from functools import partial
from pathlib import Path

import psutil
import torch

from app.core.errors.exports import ExportUnsupported
from app.core.specs.export import GgufLoraSpec, GgufSpec, GgufType
from app.core.specs.states import ExportPhase
from worker.exports import verification
from worker.exports.gguf import importance, lora as gguf_lora
from worker.exports.gguf.file import write_gguf
from worker.exports.gguf.tensor_types import choose_types, describe_fallbacks
from worker.exports.inputs import ExportInputs
from worker.exports.merged.adapter_weights import AdapterWeights
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.folder import make_merged
from worker.exports.merged.merge import Merger
from worker.exports.produced import ProducedFiles, ProducedModel
from worker.exports.prompts import collect_rows


def produce_gguf(inputs: ExportInputs, spec: GgufSpec) -> ProducedFiles:
    """Merge once and write a file of each type. Raises ExportFailure."""
    assert inputs.layout is not None
    merged = make_merged(inputs)
    checkpoint = SafetensorsCheckpoint(merged)
    matrix = _measure_importance(inputs, merged) if spec.importance_matrix else None
    folder = inputs.make_output()
    notes = [] if matrix is None else [_describe_importance(matrix)]
    models = []
    for number, type in enumerate(spec.types):
        path = folder / f"{inputs.name}-{type}.gguf"
        used = matrix if type.is_mixture else None
        write_gguf(
            checkpoint,
            path,
            layout=inputs.layout,
            tokenizer=inputs.tokenizer,
            title=inputs.name,
            type=type,
            importance=used,
            announce=inputs.progress(
                ExportPhase.CONVERTING, checkpoint.elements, part=number, parts=len(spec.types)
            ),
        )
        chosen = choose_types(checkpoint.tensors, inputs.layout, type, has_importance=used is not None)
        fallbacks = describe_fallbacks(chosen)
        notes += [f"{path.name}: {fallbacks}"] if fallbacks else []
        load = partial(verification.load_gguf, path, inputs.layout.run_as)
        models.append(ProducedModel(load, path.name, type))
    return ProducedFiles(folder, models, notes=notes)


def _measure_importance(inputs: ExportInputs, merged: Path) -> importance.ImportanceMatrix:
    """Measure the importance matrix on rows that the adapter was trained on. Raises ExportUnsupported."""
    assert inputs.layout is not None
    inputs.announce(ExportPhase.MEASURING, 0.0)
    rows = collect_rows(inputs.tokenizer, inputs.request.dataset)
    if not rows:
        raise ExportUnsupported(
            "An importance matrix is measured on rows that the adapter was trained on, and there are none: "
            "the adapter was imported, or its dataset is gone.",
            hint="Leave importance_matrix out.",
        )
    dtype = verification.choose_dtype(inputs.checkpoint.elements, psutil.virtual_memory().available)
    return importance.measure(
        verification.load_safetensors(merged, dtype),
        rows,
        inputs.layout,
        lambda progress: inputs.announce(ExportPhase.MEASURING, progress),
    )


def _describe_importance(matrix: importance.ImportanceMatrix) -> str:
    return (
        f"Weights of K-quants and IQ4_XS were rounded by an importance matrix of {matrix.rows} rows "
        f"({matrix.tokens} tokens) of the adapter's dataset."
    )


def produce_gguf_lora(inputs: ExportInputs, spec: GgufLoraSpec) -> ProducedFiles:
    """Write the LoRA file and, for verification, a GGUF file of the base model with the LoRA file applied.

    It is applied as llama.cpp applies it.
    """
    assert inputs.layout is not None
    assert inputs.weights is not None
    path = inputs.make_output() / gguf_lora_name(inputs.name, spec.type)
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
        write(path.with_name(gguf_base_name(inputs.name)), title=inputs.request.base_model)
    return ProducedFiles.of_one(
        path.parent,
        partial(verification.load_gguf, applied, inputs.layout.run_as),
        "transformers, from a GGUF file of the base model with the adapter's added as llama.cpp adds them",
    )


def gguf_lora_name(name: str, type: str) -> str:
    """The name of a LoRA file."""
    return f"{name}-lora-{type}.gguf"


def gguf_base_name(name: str) -> str:
    """The name of the file of the base weights that a LoRA file is for."""
    return f"{name}-base.gguf"
