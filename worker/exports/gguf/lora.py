"""The adapter alone as a GGUF file, for llama.cpp's `--lora`.

The format is that of llama.cpp's convert_lora_to_gguf.py: each layer's A and B under the layer's name, B's
rows permuted as the layer's are, and one alpha; llama.cpp multiplies by alpha / rank. Other scales
(rank-stabilized LoRA, a layer's own alpha) are multiplied into B.
"""

from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from app.core.errors.exports import ExportMismatch, ExportUnsupported
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.file import plan_tensor, write_tensors
from worker.exports.merged.adapter_weights import AdapterWeights

_TYPES = {"f16": GGMLQuantizationType.F16, "f32": GGMLQuantizationType.F32}


def check(adapter: AdapterWeights) -> None:
    """Raise ExportUnsupported where more than LoRA was trained."""
    unsupported = [
        name
        for name, is_there in (
            ("DoRA", adapter.use_dora),
            ("whole modules or biases", bool(adapter.replaced)),
        )
        if is_there
    ]
    if unsupported:
        raise ExportUnsupported(
            f"llama.cpp's --lora knows no {' and no '.join(unsupported)}, which this adapter has.",
            hint='Export the merged model: format "gguf".',
        )


def write_gguf_lora(
    adapter: AdapterWeights, path: Path, *, layout: GgufLayout, title: str, type: str
) -> None:
    """Write the file. Raises ExportUnsupported, GgufFamilyUnknown."""
    check(adapter)
    writer = GGUFWriter(path, layout.arch_name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
    writer.add_name(title)
    planned = []
    for module, change in adapter.changes.items():
        name = layout.name(module + ".weight")
        factor = change.scale * change.A_RI.shape[0] / adapter.alpha
        B_OR = layout.arrange_lora_b(module, change.B_OR.float() * factor)
        planned.append(plan_tensor(f"{name}.lora_a", change.A_RI, _TYPES[type]))
        planned.append(plan_tensor(f"{name}.lora_b", B_OR, _TYPES[type]))
    write_tensors(writer, planned)


class LoraFile:
    """A GGUF LoRA file, applied to the tensors of a GGUF file of the base model as llama.cpp applies it."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._alpha = float(reader.get_field(gguf.Keys.Adapter.LORA_ALPHA).contents())
        self._tensors = {
            tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
            for tensor in reader.tensors
        }
        self.applied: set[str] = set()

    @property
    def targets(self) -> set[str]:
        """The names of the tensors that the LoRA file changes."""
        return {name.removesuffix(".lora_a") for name in self._tensors if name.endswith(".lora_a")}

    def check_applied(self) -> None:
        """Raise ExportMismatch where the base model lacks a tensor that the LoRA file changes."""
        if self.applied != self.targets:
            missing = ", ".join(sorted(self.targets - self.applied)[:3])
            raise ExportMismatch(f"A GGUF file of the base model has no {missing}.")

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The tensor with its LoRA change added; unchanged where the file has none for it."""
        if name not in self.targets:
            return weight
        self.applied.add(name)
        A, B = self._tensors[f"{name}.lora_a"], self._tensors[f"{name}.lora_b"]
        return weight.float() + self._alpha / A.shape[0] * (B @ A)
