"""A PEFT folder as changes to a base model's tensors: what LoRA adds, and tensors that replace the base's.

What a merge can't apply is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from app.core.errors.exports import ExportUnsupported
from worker.models.peft_adapters import (
    PREFIX,
    AdapterDamaged,
    LoraUpdate,
    PeftConfig,
    read_config,
    read_weights,
)

# Settings that the merge applies beyond those of plain LoRA.
_APPLIED = ("bias", "use_dora", "modules_to_save", "fan_in_fan_out")


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in memory. Keys of `changes` are modules, those of `replaced` parameters, of the base
    model.
    """

    changes: dict[str, LoraUpdate]
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
        config = read_config(folder)
        _check_config(config)
        weights = read_weights(folder, config)
    except FileNotFoundError as error:
        raise ExportUnsupported(f"The adapter has no {error}.") from error
    except AdapterDamaged as error:
        raise ExportUnsupported(error.message, hint=error.hint) from error
    replaced = {_parameter(name): tensor for name, tensor in weights.others.items()}
    return AdapterWeights(weights.updates, replaced, config.alpha, config.use_rslora)


def _check_config(config: PeftConfig) -> None:
    if config.peft_type != "LORA":
        raise ExportUnsupported(f"This is a {config.peft_type} adapter; only LoRA is exported.")
    unsupported = config.find_unsupported(_APPLIED)
    if unsupported:
        raise ExportUnsupported(
            f"The adapter was trained with {', '.join(unsupported)}, which no merge here knows.",
            hint='The format "adapter" takes it as it is.',
        )


def _parameter(name: str) -> str:
    """The parameter of the base model that a tensor of the adapter replaces."""
    if ".lora_" in name:
        raise ExportUnsupported(
            f"The adapter changes more than linear layers ({name}), which no merge here knows.",
            hint="Adapters on the embeddings or the output layer can't be merged; modules_to_save can.",
        )
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")
