"""The folder of a merged model, made once for all attempts at an export."""

import shutil
from pathlib import Path

from app.core.specs.states import ExportPhase
from worker.atomic_folders import appearing
from worker.exports.inputs import SHARD_BYTES, ExportInputs
from worker.exports.merged import model_files
from worker.exports.merged.merge import merge


def make_merged(inputs: ExportInputs) -> Path:
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
            max_shard_bytes=getattr(inputs.request.spec, "max_shard_bytes", SHARD_BYTES),
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
