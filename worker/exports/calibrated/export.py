"""Produces merged models in 4 bits by AWQ or GPTQ, in the format pack-quantized of compressed-tensors."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from app.core.errors.exports import ExportUnsupported, NoMemoryForVerification
from app.core.specs.export import CalibratedSpec
from app.core.specs.states import ExportPhase
from worker.exports import verification
from worker.exports.calibrated.compressor import Compressor
from worker.exports.calibrated.groups import count_memory, find_group_size
from worker.exports.inputs import ExportInputs
from worker.exports.merged import model_files
from worker.exports.merged.folder import make_merged
from worker.exports.merged.linear_layers import find_linears
from worker.exports.produced import ProducedFiles
from worker.exports.prompts import collect_rows


def produce_calibrated(inputs: ExportInputs, spec: CalibratedSpec) -> ProducedFiles:
    """Merge, and have llm-compressor round the merged model. Raises ExportFailure, OutOfMemory."""
    rows = collect_rows(inputs.tokenizer, inputs.request.dataset, max_tokens=spec.calibration_tokens)
    if not rows:
        raise ExportUnsupported(
            f"{spec.format.upper()} is calibrated on rows that the adapter was trained on, and there are "
            "none: the adapter was imported, or its dataset is gone.",
            hint='The format "fp8", and "gguf" with the type "q4_k_m", need no rows.',
        )
    _check_memory(inputs)
    merged = make_merged(inputs)
    folder = inputs.make_output()
    group_size = _compress(inputs, spec, merged, rows)
    compressed = inputs.request.folder / "compressed"
    for path in [*compressed.glob("*.safetensors"), *compressed.glob("*.index.json")]:
        path.rename(folder / path.name)
    model_files.copy_companion_files(merged, folder)
    _describe_quantization(folder / "config.json", compressed / "config.json")
    load = partial(verification.load_safetensors, folder)
    note = _describe(inputs, spec, rows, group_size)
    return ProducedFiles.of_one(folder, load, "transformers and compressed-tensors", notes=[note])


def _compress(inputs: ExportInputs, spec: CalibratedSpec, merged: Path, rows: Sequence[Sequence[int]]) -> int:
    """Write the rounded model to the attempt's folder `compressed`. Returns the size of the groups."""
    request, output = inputs.request, inputs.shape.output_weight
    path = request.folder / "calibration.jsonl"
    path.write_text("".join(json.dumps(list(row)) + "\n" for row in rows))
    linears = find_linears(inputs.shape)
    group_size = find_group_size(inputs.checkpoint.tensors, linears, spec.format.upper())
    Compressor.of(request.llm_compressor, request.gpu).run(
        {
            "method": spec.format,
            "model": str(merged),
            "output": str(request.folder / "compressed"),
            "rows": str(path),
            "group_size": group_size,
            "ignore": [output.removesuffix(".weight")] if output else [],
            "max_shard_bytes": spec.max_shard_bytes,
        },
        request.folder,
        lambda progress: inputs.announce(ExportPhase.CONVERTING, progress),
    )
    return group_size


def _check_memory(inputs: ExportInputs) -> None:
    needed = count_memory(inputs.checkpoint.tensors, find_linears(inputs.shape), inputs.dtype)
    free = psutil.virtual_memory().available
    if needed > free:
        raise NoMemoryForVerification(
            f"llm-compressor takes {needed / 1e9:.1f} GB of main memory for this model, and "
            f"{free / 1e9:.1f} GB are free.",
            hint="Free some memory, then retry.",
        )


def _describe_quantization(config: Path, compressed: Path) -> None:
    """Add llm-compressor's description of the quantization to the merged model's own config.json.

    llm-compressor writes the rest as its release of transformers does, which the base model's may not be.
    """
    described = json.loads(config.read_text())
    described["quantization_config"] = json.loads(compressed.read_text())["quantization_config"]
    config.write_text(json.dumps(described, indent=2) + "\n")


def _describe(
    inputs: ExportInputs, spec: CalibratedSpec, rows: Sequence[Sequence[int]], group_size: int
) -> str:
    request = inputs.request
    release = Compressor.of(request.llm_compressor, request.gpu).check()
    place = "a GPU" if request.gpu else "the CPU"
    return (
        f"Weights of linear layers were rounded to 4 bits by {spec.format.upper()} (llm-compressor "
        f"{release}, on {place}), with a scale for each {group_size} inputs, calibrated on {len(rows)} rows "
        f"({sum(map(len, rows))} tokens) of the adapter's dataset."
    )
