"""LoRA adapters as PEFT writes them: read, check that this engine can apply them, keep the latest in memory.

Only safetensors are read. What is not understood is refused by name: an adapter is applied whole or not at
all. Shape letters: R rank, I inputs, O outputs.
"""

import json
import math
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from app.core.engine.messages import AdapterRef
from app.core.errors import NotFound
from app.core.storage.artifacts import ArtifactStore
from worker.inference.failures import AdapterUnsupported

_WEIGHT_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# Settings of PEFT's LoraConfig that are read below or say nothing about how the weights are applied.
_UNDERSTOOD = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "peft_version"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "eva_config", "bias"),
}
# These initialisations leave the base weights alone; PiSSA, OLoRA and LoftQ do not.
_HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraPair:
    """The update of one linear layer: x · A_RIᵀ · B_RO, with the scale already in B."""

    A_RI: torch.Tensor
    B_RO: torch.Tensor

    @property
    def rank(self) -> int:
        """Its R."""
        return self.A_RI.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An adapter in main memory. Keys of `pairs` are module names in the base model."""

    id: str
    folder: Path
    pairs: dict[str, LoraPair]

    @property
    def rank(self) -> int:
        """The largest rank of its pairs."""
        return max(pair.rank for pair in self.pairs.values())

    def ready_for(self, dtype: torch.dtype, *, pinned: bool) -> "Adapter":
        """As the device wants it: in its dtype, and in memory that it can read by itself.

        One piece of it for all: to pin hundreds of small ones takes longer than to read the file.
        """
        tensors = [tensor for pair in self.pairs.values() for tensor in (pair.A_RI, pair.B_RO)]
        sizes = [tensor.numel() for tensor in tensors]
        memory = torch.empty(sum(sizes), dtype=dtype, pin_memory=pinned)
        placed = [part.view_as(tensor) for part, tensor in zip(memory.split(sizes), tensors, strict=True)]
        torch._foreach_copy_(placed, tensors)
        pairs = {
            name: LoraPair(A_RI, B_RO)
            for name, A_RI, B_RO in zip(self.pairs, placed[0::2], placed[1::2], strict=True)
        }
        return replace(self, pairs=pairs)

    @property
    def size_bytes(self) -> int:
        """Memory its weights take."""
        return sum(tensor.nbytes for pair in self.pairs.values() for tensor in (pair.A_RI, pair.B_RO))


class AdapterShelf:
    """Adapters in main memory, the least recently used put away first. Safe to call from many threads."""

    def __init__(
        self, artifacts: ArtifactStore, cache_folder: Path, max_bytes: int, *, pins_memory: bool = False
    ) -> None:
        self._artifacts = artifacts
        self._cache_folder = cache_folder
        self._max_bytes = max_bytes
        self._pins_memory = pins_memory
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def get(self, reference: AdapterRef, dtype: torch.dtype = torch.float32) -> Adapter:
        """The adapter in the dtype of its base model, read when it is not here.

        Raises NotFound and AdapterUnsupported.
        """
        adapter = self._find(reference.id)
        if adapter is None:
            # One reader at a time: two copies of one artifact would get in each other's way.
            with self._reading:
                adapter = self._find(reference.id) or self._read(reference, dtype)
                self._keep(adapter)
        return adapter

    def _find(self, adapter_id: str) -> Adapter | None:
        with self._lock:
            if adapter_id in self._adapters:
                self._adapters.move_to_end(adapter_id)
            return self._adapters.get(adapter_id)

    def _read(self, reference: AdapterRef, dtype: torch.dtype) -> Adapter:
        try:
            folder = self._artifacts.fetch(reference.artifact, self._cache_folder)
            adapter = read_adapter(reference.id, folder)
            return adapter.ready_for(dtype, pinned=self._pins_memory)
        except FileNotFoundError as error:
            raise NotFound(f"The files of adapter {reference.id!r} are gone: {error}.") from error

    def _keep(self, adapter: Adapter) -> None:
        with self._lock:
            self._adapters[adapter.id] = adapter
            size_bytes = sum(one.size_bytes for one in self._adapters.values())
            while len(self._adapters) > 1 and size_bytes > self._max_bytes:
                size_bytes -= self._adapters.popitem(last=False)[1].size_bytes


def read_adapter(adapter_id: str, folder: Path) -> Adapter:
    """Read a PEFT folder. Raises AdapterUnsupported and FileNotFoundError."""
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    _check_config(config)
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise FileNotFoundError(path.name)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise AdapterUnsupported(f"The adapter's weights can't be read: {error}") from error
    return Adapter(adapter_id, folder, _pair_up(weights, config))


def _check_config(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterUnsupported(
            f"This is a {config.get('peft_type')} adapter; only LoRA adapters are served."
        )
    unsupported = sorted(name for name, value in config.items() if value and name not in _UNDERSTOOD)
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if config.get("init_lora_weights", True) not in _HARMLESS_INITS:
        unsupported.append(f"init_lora_weights={config['init_lora_weights']}")
    if unsupported:
        raise AdapterUnsupported(
            f"The adapter was trained with {', '.join(unsupported)}, which the engine can't apply.",
            hint="Merge it into its base model and serve that, or train a plain LoRA adapter.",
        )


def _pair_up(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, LoraPair]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        match = _WEIGHT_NAME.fullmatch(name)
        if match is None:
            raise AdapterUnsupported(f"The adapter holds {name!r}, which the engine can't apply.")
        # A sum with an infinity or a NaN in it is one itself; a double can't overflow here.
        if not math.isfinite(tensor.sum(dtype=torch.float64).item()):
            raise AdapterUnsupported(f"The adapter's weight {name!r} is not finite.")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides or any(len(pair) != 2 for pair in sides.values()):
        raise AdapterUnsupported("The adapter's weights are not pairs of lora_A and lora_B.")
    return {module: _pair(module, pair["A"], pair["B"], config) for module, pair in sides.items()}


def _pair(module: str, A_RI: torch.Tensor, B_OR: torch.Tensor, config: dict[str, Any]) -> LoraPair:
    if A_RI.ndim != 2 or B_OR.ndim != 2 or A_RI.shape[0] != B_OR.shape[1]:
        raise AdapterUnsupported(f"The adapter's weights for {module!r} are not two matrices of one rank.")
    rank = A_RI.shape[0]
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(A_RI, (B_OR.float() * scale).T.contiguous())


def _by_pattern(patterns: dict[str, float], module: str, default: float) -> float:
    """The first pattern that matches the module's name, as PEFT's `get_pattern_key` looks for it."""
    return next(
        (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default
    )
