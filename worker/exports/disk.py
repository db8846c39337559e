"""The disk space that an export needs, checked before it starts."""

import shutil
from pathlib import Path

from app.core.errors.exports import ExportDiskFull
from app.core.specs.export import (
    AdapterArchive,
    CalibratedSpec,
    ExportSpec,
    Fp8Spec,
    GgufLoraSpec,
    GgufSpec,
    HubSpec,
    PytorchBinSpec,
)

# Headers, the tokenizer, and writes of other programs during the export.
_SPARE_BYTES = 64 << 20


def count_bytes(
    spec: ExportSpec, *, elements: int, adapter_bytes: int, has_merged: bool, converted_bytes: int = 0
) -> int:
    """The peak disk usage of an export in bytes, including the copy in the artifact store.

    `converted_bytes` is the size of the tensors that a merged model is converted to, as GGUF, in FP8 or in
    4 bits.
    """
    merged = 0 if has_merged else elements * 2
    match spec:
        case AdapterArchive() | HubSpec(content="adapter"):
            return 4 * adapter_bytes + _SPARE_BYTES
        case GgufLoraSpec(with_base=with_base):
            # Verification writes a GGUF file of the base model.
            return elements * 2 * (3 if with_base else 1) + 4 * adapter_bytes + _SPARE_BYTES
        case GgufSpec() | Fp8Spec() | CalibratedSpec():
            return merged + 2 * converted_bytes + _SPARE_BYTES
        case PytorchBinSpec():
            return merged + 2 * elements * 2 + _SPARE_BYTES
        case HubSpec():
            return merged + _SPARE_BYTES
        case _:
            return merged + elements * 2 + _SPARE_BYTES


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise ExportDiskFull where fewer bytes than needed are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportDiskFull(
            f"The export takes {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free.",
            hint="Free some space (DELETE /exports/{id} removes old exports), then retry.",
        )
