"""LoRA adapters in main memory: those read last stay, within a number of bytes.

An adapter is applied whole: by the paged engine, by PEFT on the general path, or it is refused by name.
Shape letters: R rank, I inputs, O outputs.
"""

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from app.core.adapters.files import MAX_RANK
from app.core.engine.messages import AdapterRef
from app.core.errors import NotFound
from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.artifacts import ArtifactStore
from worker.inference.adapters.expert_pairs import ExpertPair, find_holders, holder_of, unpack_pairs
from worker.inference.failures import AdapterUnsupported
from worker.inference.general.adapters import APPLIED, PeftFolder
from worker.models.peft_adapters import (
    AdapterDamaged,
    LoraUpdate,
    PeftConfig,
    PeftWeights,
    is_finite,
    read_config,
    read_weights,
)
from worker.models.routers import WEIGHT
from worker.models.serving_path import name_obstacles

# Settings beyond those of plain LoRA that the paged engine may pass over.
_PASSED_OVER = ("ensure_weight_tying", "target_parameters")
# Base weights of experts are one tensor each; adapters of older versions name every expert's layers.
_HALF = 0.5  # the mantissa of a power of two
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class LoraPair:
    """The update of one linear layer: x · A_RIᵀ · B_ORᵀ. B contains the scale."""

    A_RI: torch.Tensor
    B_OR: torch.Tensor

    @property
    def rank(self) -> int:
        """R."""
        return self.A_RI.shape[0]


@dataclass(frozen=True)
class CachedAdapter:
    """An adapter in main memory.

    Keys of `pairs` are names of modules in the base model; those of `expert_pairs`, of parameters.
    """

    id: str
    folder: Path
    pairs: dict[str, LoraPair]
    expert_pairs: dict[str, ExpertPair] = field(default_factory=dict)
    # Names of the targeted parameters: those of experts, and weights of modules that are in `pairs`.
    parameters: frozenset[str] = frozenset()

    @property
    def rank(self) -> int:
        """The largest rank of its pairs on linear layers."""
        return max((pair.rank for pair in self.pairs.values()), default=0)

    def ready_for(self, dtype: torch.dtype, *, pinned: bool) -> "CachedAdapter":
        """Return the adapter in the device's dtype; `pinned`: in memory that the device can read itself.

        All tensors share one allocation: to pin hundreds of small ones takes longer than to read the file.
        Raises AdapterUnsupported for weights that are infinite in that type: where a batch has several
        adapters they are multiplied by zero, which is no number.
        """
        tensors = self._tensors()
        sizes = [tensor.numel() for tensor in tensors]
        memory = torch.empty(sum(sizes), dtype=dtype, pin_memory=pinned)
        placed = [part.view_as(tensor) for part, tensor in zip(memory.split(sizes), tensors, strict=True)]
        torch._foreach_copy_(placed, tensors)
        if not is_finite(memory):
            raise AdapterUnsupported(
                f"The adapter's weights are too large for {str(dtype).removeprefix('torch.')}, in which its "
                "base model is served."
            )
        both = list(zip(placed[0::2], placed[1::2], strict=True))
        count = len(self.pairs)
        pairs = {name: LoraPair(*two) for name, two in zip(self.pairs, both[:count], strict=True)}
        of_experts = zip(self.expert_pairs, both[count:], strict=True)
        return replace(self, pairs=pairs, expert_pairs={name: ExpertPair(*two) for name, two in of_experts})

    @property
    def size_bytes(self) -> int:
        """Memory its weights take."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> list[torch.Tensor]:
        """A and B of each pair."""
        of_layers = [tensor for pair in self.pairs.values() for tensor in (pair.A_RI, pair.B_OR)]
        return of_layers + [
            tensor for pair in self.expert_pairs.values() for tensor in (pair.A_ERI, pair.B_ERO)
        ]


StoredAdapter = CachedAdapter | PeftFolder


class AdapterCache:
    """Adapters in main memory; the least recently used is dropped first. Safe to call from many threads."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        cache_folder: Path,
        max_bytes: int,
        *,
        cache_bytes: int | None = None,
        pins_memory: bool = False,
    ) -> None:
        self._artifacts = artifacts
        self._copies = ArtifactCache(cache_folder, cache_bytes)
        self._max_bytes = max_bytes
        self._pins_memory = pins_memory
        self._adapters: OrderedDict[str, StoredAdapter] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def get(self, reference: AdapterRef, dtype: torch.dtype = torch.float32) -> StoredAdapter:
        """Return the adapter in the dtype of its base model, from memory or read from its files.

        Raises NotFound and AdapterUnsupported.
        """
        adapter = self._find(reference.id)
        if adapter is None:
            # One reader at a time: two copies of one artifact would get in each other's way.
            with self._reading:
                adapter = self._find(reference.id) or self._read(reference, dtype)
                self._store(adapter)
        return adapter

    def holds(self, adapter_id: str) -> bool:
        """Whether the adapter is in memory now."""
        return adapter_id in self._adapters

    def _find(self, adapter_id: str) -> StoredAdapter | None:
        with self._lock:
            if adapter_id in self._adapters:
                self._adapters.move_to_end(adapter_id)
            return self._adapters.get(adapter_id)

    def _read(self, reference: AdapterRef, dtype: torch.dtype) -> StoredAdapter:
        try:
            folder = self._artifacts.fetch(reference.artifact, self._copies)
            adapter = read_adapter(reference.id, folder)
            if isinstance(adapter, PeftFolder):
                return adapter
            return adapter.ready_for(dtype, pinned=self._pins_memory)
        except FileNotFoundError as error:
            raise NotFound(f"The files of adapter {reference.id!r} are gone: {error}.") from error

    def _store(self, adapter: StoredAdapter) -> None:
        with self._lock:
            self._adapters[adapter.id] = adapter
            size_bytes = sum(one.size_bytes for one in self._adapters.values())
            while len(self._adapters) > 1 and size_bytes > self._max_bytes:
                size_bytes -= self._adapters.popitem(last=False)[1].size_bytes


def read_adapter(adapter_id: str, folder: Path) -> StoredAdapter:
    """Read a PEFT folder; a PeftFolder is what the paged engine can't apply.

    Raises AdapterUnsupported and FileNotFoundError.
    """
    try:
        config = read_config(folder)
        _check_config(config)
        weights = read_weights(folder, config)
    except AdapterDamaged as error:
        raise AdapterUnsupported(error.message, hint=error.hint) from error
    if not weights.updates and not weights.others:
        raise AdapterUnsupported("The adapter has no weights.")
    holders = find_holders(config, list(weights.updates))
    if config.settings.get("target_parameters") and not holders:
        return PeftFolder(adapter_id, folder, ", ".join(name_obstacles(["target_parameters"], ())))
    on_layers = {name: one for name, one in weights.updates.items() if holder_of(name) not in holders}
    obstacle = _find_obstacle(config, weights, on_layers)
    if obstacle:
        return PeftFolder(adapter_id, folder, obstacle)
    pairs = {module: _make_pair(update) for module, update in on_layers.items()}
    expert_pairs: dict[str, ExpertPair] = {}
    for holder, parameters in holders.items():
        own = {name: one for name, one in weights.updates.items() if holder_of(name) == holder}
        if parameters == [WEIGHT] and list(own) == [holder]:
            pairs[holder] = _make_pair(_on_parameter(own[holder], f"{holder}.{WEIGHT}", config))
        elif found := unpack_pairs(config, holder, parameters, own):
            expert_pairs |= found
        else:
            return PeftFolder(adapter_id, folder, f"the weights for {holder!r}")
    _check_ranks([one.rank for one in pairs.values()] + [one.rank for one in expert_pairs.values()])
    named = frozenset(f"{holder}.{one}" for holder, parameters in holders.items() for one in parameters)
    return CachedAdapter(adapter_id, folder, pairs, expert_pairs, named)


def _make_pair(update: LoraUpdate) -> LoraPair:
    B_OR, scale = update.B_OR, update.scale
    if scale == 1:
        return LoraPair(update.A_RI, B_OR)
    # A power of two changes the exponent alone; the range of float16 is too small for that.
    is_exact = abs(math.frexp(scale)[0]) == _HALF and B_OR.dtype != torch.float16
    return LoraPair(update.A_RI, (B_OR if is_exact else B_OR.float()) * scale)


def _on_parameter(update: LoraUpdate, name: str, config: PeftConfig) -> LoraUpdate:
    """The update with the scale that PEFT finds by the parameter's name."""
    return replace(update, scale=config.scale(name, update.A_RI.shape[0]))


def _check_config(config: PeftConfig) -> None:
    if config.peft_type != "LORA":
        raise AdapterUnsupported(f"This is a {config.peft_type} adapter; only LoRA adapters are served.")
    unsupported = config.find_unsupported(APPLIED)
    if unsupported:
        raise AdapterUnsupported(
            f"The adapter was trained with {', '.join(unsupported)}, which the engine can't apply.",
            hint="Merge it into its base model and serve that, or train a plain LoRA adapter.",
        )


def _find_obstacle(
    config: PeftConfig, weights: PeftWeights, on_layers: Mapping[str, LoraUpdate]
) -> str | None:
    """What in an adapter the paged engine can't apply. `on_layers`: updates not on targeted parameters."""
    if named := name_obstacles(config.find_unsupported(_PASSED_OVER), weights.others):
        return ", ".join(named)
    if weights.others:
        return f"the weight {next(iter(weights.others))!r}"
    unlike = [
        module
        for module, update in on_layers.items()
        if update.magnitude_O is not None or _EXPERT.search(module)
    ]
    return f"the weights for {unlike[0]!r}" if unlike else None


def _check_ranks(ranks: list[int]) -> None:
    if (rank := max(ranks)) > MAX_RANK:
        raise AdapterUnsupported(f"The adapter has a layer of rank {rank}; the highest is {MAX_RANK}.")
