"""The folder of a LoRA adapter as PEFT's `save_pretrained` writes it, read in one place for all who need it.

Only safetensors are read. Serving and exports decide which of an adapter's settings they apply, and
explain what they refuse. R: rank, I: inputs, O: outputs of a linear layer.
"""

import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from app.core.adapters.files import CONFIG, WEIGHTS, check_pattern_key
from app.core.errors import TunesmithError
from app.core.specs.patterns import MODULE_NAME
from worker.models.files.reading import reading

PREFIX = "base_model.model."
_LORA_NAME = re.compile(
    re.escape(PREFIX)
    + r"(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|(?P<magnitude>magnitude_vector)(?:\.weight)?)"
)

# Settings of PEFT's LoraConfig that say how an adapter was trained, not how it is applied; or that are read
# below.
_UNDERSTOOD = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "peft_version"),
    *("megatron_core", "qalora_group_size", "eva_config"),
}
# Those of which PyTorch finds the least and the greatest: not float8.
_COMPARED_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# These initialisations leave the base weights alone; PiSSA, OLoRA and LoftQ do not.
_HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")


class AdapterDamaged(TunesmithError):
    """The weights of an adapter are not pairs of finite matrices, or its settings can't be read.

    The message names the first such weight or setting.
    """

    code = "adapter_damaged"


@dataclass(frozen=True)
class PeftConfig:
    """The settings in adapter_config.json."""

    settings: dict[str, Any]

    @property
    def peft_type(self) -> Any:
        """The kind of adapter: `LORA` for those that can be read here."""
        return self.settings.get("peft_type")

    @property
    def alpha(self) -> float:
        """The alpha of layers that have none of their own."""
        return float(self.settings["lora_alpha"])

    @property
    def use_rslora(self) -> bool:
        """Whether scales are alpha / sqrt(R) (Kalajdzievski 2023) in place of alpha / R."""
        return bool(self.settings.get("use_rslora"))

    def find_unsupported(self, applied: Collection[str]) -> list[str]:
        """Names of the settings that change what the adapter does, except those that the caller applies."""
        understood = {*_UNDERSTOOD, *applied, "bias"}
        found = sorted(name for name, value in self.settings.items() if value and name not in understood)
        if "bias" not in applied and self.settings.get("bias", "none") != "none":
            found.append("bias")
        init = self.settings.get("init_lora_weights", True)
        return found if init in _HARMLESS_INITS else [*found, f"init_lora_weights={init}"]

    def rank(self, module: str) -> int:
        """The rank that the settings name for a module, which may be one of its own (`rank_pattern`)."""
        patterns: dict[str, int] = self.settings.get("rank_pattern") or {}
        return int(next((patterns[key] for key in patterns if is_match(key, module)), self.settings["r"]))

    def scale(self, module: str, rank: int) -> float:
        """What B A is multiplied with in a module, whose alpha may be one of its own (`alpha_pattern`)."""
        patterns: dict[str, float] = self.settings.get("alpha_pattern") or {}
        alpha = next(
            (patterns[key] for key in patterns if is_match(key, module)), self.settings["lora_alpha"]
        )
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class LoraUpdate:
    """The update of one linear layer to W + scale · B A; DoRA scales its rows to the trained magnitude."""

    A_RI: torch.Tensor
    B_OR: torch.Tensor
    scale: float
    magnitude_O: torch.Tensor | None = None

    def of_rows(self, first: int, last: int) -> "LoraUpdate":
        """The update of the outputs from `first` to `last` - 1."""
        magnitude_O = None if self.magnitude_O is None else self.magnitude_O[first:last]
        return replace(self, B_OR=self.B_OR[first:last], magnitude_O=magnitude_O)

    def apply(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """The merged weight, in float32 (LoRA: Hu et al. 2021; DoRA: Liu et al. 2024, equation 5)."""
        merged_OI = torch.addmm(weight_OI.float(), self.B_OR.float(), self.A_RI.float(), alpha=self.scale)
        if self.magnitude_O is not None:
            merged_OI *= (self.magnitude_O.float() / merged_OI.norm(dim=1))[:, None]
        return merged_OI


@dataclass(frozen=True)
class PeftWeights:
    """The tensors of an adapter: LoRA by the module that it is on, all others by the names in the file."""

    updates: dict[str, LoraUpdate]
    others: dict[str, torch.Tensor]


def is_match(key: str, module: str) -> bool:
    """Whether a key of rank_pattern or alpha_pattern is the end of a module's name; with a ^, the whole name.

    This is what PEFT's `get_pattern_key` finds for names; it compiles the key as a regular expression.
    """
    name = key.removeprefix("^").removeprefix(".*\\.").removesuffix("$").replace("\\.", ".")
    return module == name or (not key.startswith("^") and module.endswith(f".{name}"))


def read_config(folder: Path) -> PeftConfig:
    """Read adapter_config.json. Raises FileNotFoundError and AdapterDamaged."""
    with _reading(folder / CONFIG):
        settings = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(settings, dict):
            raise ValueError("it is not a JSON object")
        _check_numbers(settings)
        config = PeftConfig(settings)
    try:
        for setting in ("rank_pattern", "alpha_pattern"):
            for key in config.settings.get(setting) or {}:
                check_pattern_key(key)
    except ValueError as error:
        raise AdapterDamaged(f"The adapter's {setting}: {error}.") from error
    for setting in ("modules_to_save", "target_modules"):
        names = config.settings.get(setting)
        # One text in place of a list is an expression: it is not compiled, the weights name the layers.
        for name in names if isinstance(names, list) else []:
            if not re.fullmatch(MODULE_NAME, str(name)):
                raise AdapterDamaged(f"The adapter's {setting}: {str(name)[:100]!r} is no name of a module.")
    return config


def _check_numbers(settings: dict[str, Any]) -> None:
    numbers: dict[str, Any] = {name: settings[name] for name in ("r", "lora_alpha") if name in settings}
    for pattern in ("rank_pattern", "alpha_pattern"):
        numbers |= {f"{pattern}[{key!r}]": value for key, value in (settings.get(pattern) or {}).items()}
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, not a number")


def read_weights(folder: Path, config: PeftConfig) -> PeftWeights:
    """Read adapter_model.safetensors. Raises FileNotFoundError and AdapterDamaged."""
    with _reading(folder / WEIGHTS):
        return _sort_weights(load_file(folder / WEIGHTS), config)


def is_finite(tensor: torch.Tensor) -> bool:
    """Returns whether there is no infinity and no NaN in it."""
    if tensor.dtype not in _COMPARED_TYPES:
        tensor = tensor.double()
    # The least and the greatest show infinities, and are NaN where one is: far faster than a sum in doubles.
    return tensor.numel() == 0 or all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise AdapterDamaged for any error that a file of an adapter causes within the block."""
    if not path.exists():
        raise FileNotFoundError(path.name)
    hint = "Save the adapter again with PEFT's save_pretrained."
    with reading(f"The adapter's {path.name}", hint=hint, raises=AdapterDamaged):
        yield


def _sort_weights(tensors: dict[str, torch.Tensor], config: PeftConfig) -> PeftWeights:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    others: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise AdapterDamaged(f"The adapter's weight {name!r} is not finite.")
        match = _LORA_NAME.fullmatch(name)
        # The magnitudes of an embedding's DoRA have the name of a linear layer's, its matrices do not.
        if match and f"{PREFIX}{match['module']}.lora_embedding_A" not in tensors:
            parts.setdefault(match["module"], {})[match["side"] or match["magnitude"]] = tensor
        else:
            others[name] = tensor
    return PeftWeights(
        {module: _make_update(module, found, config) for module, found in parts.items()}, others
    )


def _make_update(module: str, parts: dict[str, torch.Tensor], config: PeftConfig) -> LoraUpdate:
    A_RI, B_OR = parts.get("A"), parts.get("B")
    if A_RI is None or B_OR is None or A_RI.ndim != 2 or B_OR.ndim != 2 or A_RI.shape[0] != B_OR.shape[1]:
        raise AdapterDamaged(f"The adapter's weights for {module!r} are not two matrices of one rank.")
    return LoraUpdate(A_RI, B_OR, config.scale(module, A_RI.shape[0]), parts.get("magnitude_vector"))
