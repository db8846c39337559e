"""Adapters as folders, and how PEFT puts one on a copy of the base model.

PEFT's own code applies the adapter. Its configuration is written anew from the settings that are known to
leave the base model's weights alone, with the layers by name: no expression of a stranger is compiled, and no
rank is allocated that the weights do not have.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from app.core.errors import NotFound
from worker.inference.failures import AdapterUnsupported
from worker.inference.general.model_copy import copy_modules
from worker.models.files.error_text import describe
from worker.models.files.reading import is_caused_by_content
from worker.models.peft_adapters import (
    PREFIX,
    AdapterDamaged,
    PeftConfig,
    PeftWeights,
    read_config,
    read_weights,
)

# Settings of LoraConfig that PEFT applies here, beyond those of plain LoRA.
APPLIED = (
    *("use_dora", "bias", "lora_bias", "modules_to_save", "target_parameters", "fan_in_fan_out"),
    *("trainable_token_indices", "ensure_weight_tying"),
)
_EMBEDDING_KEY = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_embedding_A")
# Layers that one parameter of transformers 5 is made of: its adapter has so many times the rank.
_MAX_FUSED = 4
_WHOLE_KEY = re.compile(re.escape(PREFIX) + r"(?P<name>.+)")


@dataclass(frozen=True)
class PeftFolder:
    """An adapter that PEFT applies; `obstacle`: what in it the paged engine can't apply."""

    id: str
    folder: Path
    obstacle: str
    # Its weights are read when it is put on the model.
    size_bytes: int = 0


def put_on(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A copy of the model with the adapter in a folder; the model itself does not change.

    Raises AdapterUnsupported and NotFound.
    """
    try:
        config = read_config(folder)
        weights = read_weights(folder, config)
    except FileNotFoundError as error:
        raise NotFound(f"The files of the adapter are gone: {error}.") from error
    except AdapterDamaged as error:
        raise AdapterUnsupported(error.message, hint=error.hint) from error
    try:
        lora = _lora_config(model, config, weights)
        copied = copy_modules(model, own=_overwritten(model, weights, lora))
        adapted = PeftModel.from_pretrained(copied, str(folder), config=lora).eval()
    # PEFT and torch raise anything for layers that are missing, and for other shapes than the model's.
    except Exception as error:
        if not is_caused_by_content(error):
            raise
        raise AdapterUnsupported(
            f"PEFT can't put the adapter on this base model: {describe(error)}.",
            hint="Was it trained on another base model?",
        ) from error
    base: PreTrainedModel = adapted.get_base_model()
    return base


def _lora_config(model: PreTrainedModel, config: PeftConfig, weights: PeftWeights) -> LoraConfig:
    settings = config.settings
    ranks = _ranks(weights)
    parameters = _parameter_holders(model, settings.get("target_parameters") or [], ranks)
    layers = {module: rank for module, rank in ranks.items() if module not in parameters}
    _check_ranks(config, [ranks[module] for module in parameters])
    there = {name for name, _module in model.named_modules()}
    # One text in place of a list is an expression.
    if layers.keys() <= there or not isinstance(settings.get("target_modules"), list):
        given = {"target_modules": sorted(layers), **_literal_patterns(config, layers)}
    else:
        # The names in files of older versions may differ from the model's; PEFT then converts them.
        named = ("target_modules", "rank_pattern", "alpha_pattern")
        given = {name: settings.get(name) or {} for name in named}
        _check_ranks(config, list(layers.values()))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        use_rslora=config.use_rslora,
        inference_mode=True,
        **given,
        **{name: settings[name] for name in APPLIED if settings.get(name)},
    )


def _check_ranks(config: PeftConfig, ranks: list[int]) -> None:
    """Raise AdapterUnsupported for ranks in the configuration that are far above those of the weights.

    PEFT allocates by the configuration. It may say more than the weights of a layer have, by a factor of the
    layers that are fused into one.
    """
    declared = max([config.settings["r"], *(config.settings.get("rank_pattern") or {}).values()])
    if ranks and declared > _MAX_FUSED * min(ranks):
        raise AdapterUnsupported(
            f"The adapter's configuration says rank {declared}; some of its weights have {min(ranks)}."
        )


def _ranks(weights: PeftWeights) -> dict[str, int]:
    """The rank of each layer, and of experts' parameters their number times the rank, by the weights."""
    embeddings = {
        match["module"]: tensor.shape[0]
        for key, tensor in weights.others.items()
        if (match := _EMBEDDING_KEY.fullmatch(key))
    }
    return embeddings | {module: update.A_RI.shape[0] for module, update in weights.updates.items()}


def _parameter_holders(model: PreTrainedModel, targets: list[str], modules: Collection[str]) -> set[str]:
    """Those of `modules` whose weights in the file belong to targeted parameters, not to the module.

    PEFT nests one wrapper for each parameter, the inner ones under the name `base_layer`.
    """
    there = dict(model.named_modules())
    endings = tuple(f".{target}" for target in targets)
    found = set()
    for module in modules if targets else ():
        holder = module
        while holder.endswith(".base_layer"):
            holder = holder.removesuffix(".base_layer")
        parameters = there[holder]._parameters if holder in there else {}
        if any(f".{holder}.{name}".endswith(endings) for name in parameters):
            found.add(module)
    return found


def _literal_patterns(config: PeftConfig, layers: dict[str, int]) -> dict[str, dict[str, float]]:
    """The ranks and alphas of all layers under their names, and those of parameters as they were."""
    roots = {module: math.sqrt(rank) if config.use_rslora else rank for module, rank in layers.items()}
    alphas = {module: config.scale(module, rank) * roots[module] for module, rank in layers.items()}
    given = config.settings if config.settings.get("target_parameters") else {}
    return {
        "rank_pattern": {re.escape(one): rank for one, rank in layers.items()}
        | (given.get("rank_pattern") or {}),
        "alpha_pattern": {re.escape(one): alpha for one, alpha in alphas.items()}
        | (given.get("alpha_pattern") or {}),
    }


def _overwritten(model: PreTrainedModel, weights: PeftWeights, lora: LoraConfig) -> set[str]:
    """Parameters of the base model that the file has other values for, as biases.

    Those of `modules_to_save` are not among them: PEFT copies these modules.
    """
    saved = lora.modules_to_save or []
    parameters = {name for name, _parameter in model.named_parameters(remove_duplicate=False)}
    names = {
        match["name"].replace(".base_layer.", ".")
        for key in weights.others
        if (match := _WHOLE_KEY.fullmatch(key))
    }
    return {name for name in names & parameters if not name.rpartition(".")[0].endswith(tuple(saved))}
