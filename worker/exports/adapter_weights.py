"""A PEFT folder as changes to a base model's tensors: what LoRA adds, what stands in another's place.

Only safetensors are read, and what is not understood is refused by name. R: rank, I: inputs, O: outputs.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from app.core.errors.exports import ExportUnsupported

_PREFIX = "base_model.model."
# These say how an adapter was trained, not how it is applied; or they are read below.
_UNDERSTOOD = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "peft_version"),
    *("megatron_core", "qalora_group_size", "eva_config", "bias", "use_dora"),
    *("modules_to_save", "fan_in_fan_out"),
}
# Other initialisations (PiSSA, OLoRA, LoftQ) change the base weights.
_HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraChange:
    """What one linear layer becomes: W + scale · B A, with DoRA at the length that the magnitude gives."""

    A_RI: torch.Tensor
    B_OR: torch.Tensor
    scale: float
    magnitude_O: torch.Tensor | None = None

    def of_rows(self, first: int, last: int) -> "LoraChange":
        """What some outputs of the layer become."""
        magnitude_O = None if self.magnitude_O is None else self.magnitude_O[first:last]
        return replace(self, B_OR=self.B_OR[first:last], magnitude_O=magnitude_O)

    def apply(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """The merged weight, in float32 (LoRA: Hu et al. 2021; DoRA: Liu et al. 2024, equation 5)."""
        merged_OI = torch.addmm(weight_OI.float(), self.B_OR.float(), self.A_RI.float(), alpha=self.scale)
        if self.magnitude_O is not None:
            merged_OI *= (self.magnitude_O.float() / merged_OI.norm(dim=1))[:, None]
        return merged_OI


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in memory. Keys of `changes` are modules, those of `replaced` parameters, of the base
    model.
    """

    changes: dict[str, LoraChange]
    replaced: dict[str, torch.Tensor]
    alpha: float
    use_rslora: bool

    @property
    def use_dora(self) -> bool:
        """Whether magnitudes were trained apart."""
        return any(change.magnitude_O is not None for change in self.changes.values())


def read_adapter(folder: Path) -> AdapterWeights:
    """Read a PEFT folder. Raises ExportUnsupported."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ExportUnsupported(f"The adapter's files can't be read: {error}") from error
    _check_config(config)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ExportUnsupported(f"The adapter's weight {name!r} is not finite.")
        module, part = _split_name(name)
        if part is None:
            replaced[module] = tensor
        else:
            parts.setdefault(module, {})[part] = tensor
    changes = {module: _make_change(module, found, config) for module, found in parts.items()}
    return AdapterWeights(changes, replaced, float(config["lora_alpha"]), bool(config.get("use_rslora")))


def _split_name(name: str) -> tuple[str, str | None]:
    """(module, part of its LoRA), or (parameter, None) for what was trained whole."""
    plain = name.removeprefix(_PREFIX)
    if ".lora_" not in plain:
        return plain.replace(".base_layer.", "."), None
    module, _, rest = plain.partition(".lora_")
    part = rest.removesuffix(".weight")
    if part not in ("A", "B", "magnitude_vector"):
        raise ExportUnsupported(
            f"The adapter changes more than linear layers ({name}), which no merge here knows.",
            hint="Adapters on the embeddings or the output layer can't be merged; modules_to_save can.",
        )
    return module, part


def _check_config(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ExportUnsupported(f"This is a {config.get('peft_type')} adapter; only LoRA is exported.")
    unsupported = sorted(name for name, value in config.items() if value and name not in _UNDERSTOOD)
    if config.get("init_lora_weights", True) not in _HARMLESS_INITS:
        unsupported.append(f"init_lora_weights={config['init_lora_weights']}")
    if unsupported:
        raise ExportUnsupported(
            f"The adapter was trained with {', '.join(unsupported)}, which no merge here knows.",
            hint='The format "adapter" takes it as it is.',
        )


def _make_change(module: str, parts: dict[str, torch.Tensor], config: dict[str, Any]) -> LoraChange:
    A_RI, B_OR = parts.get("A"), parts.get("B")
    if A_RI is None or B_OR is None or A_RI.ndim != 2 or B_OR.ndim != 2 or A_RI.shape[0] != B_OR.shape[1]:
        raise ExportUnsupported(f"The adapter's weights for {module!r} are not two matrices of one rank.")
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
    rank = A_RI.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraChange(A_RI, B_OR, scale, parts.get("magnitude_vector"))
