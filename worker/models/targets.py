"""Which modules of a base model get an adapter: the names of a job's spec, checked, or the family's default.

All of it is read from the model's structure, so a model on the meta device is enough.
"""

import difflib
import re
from collections.abc import Iterable

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba, check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.core.errors.jobs import BadTarget
from app.core.specs.job import JobSpec, LoraSpec
from worker.models.base_model import NEVER_CALLED, linears_to_quantize

ALL_LINEAR = "all-linear"
TARGET_HINT = (
    'Set lora.target_modules to names of linear layers, as in ["q_proj", "v_proj"], or to "all-linear".'
)
_SAVE_HINT = 'Set lora.modules_to_save to names like "lm_head" or "embed_tokens".'


def check_names(model: PreTrainedModel, spec: JobSpec) -> None:
    """Raise BadTarget for a name of the spec that matches no module; PEFT ignores it if another one matches.

    A job that continues an adapter has the adapter's names, some of which may never have matched; the
    adapter's weights are compared with the model instead.
    """
    for name in spec.lora.modules_to_save or []:
        _check_module_to_save(model, name, is_4bit=spec.quantization.load_in_4bit)
    if isinstance(spec.lora.target_modules, list) and not spec.continue_from:
        _check_targets(model, spec.lora.target_modules, spec.lora.modules_to_save or [])


def with_default(model: PreTrainedModel, lora: LoraSpec) -> LoraSpec:
    """The settings with targets where they name none: PEFT's for the model's family, else `all-linear`.

    PEFT's are named here, since it loses its own default where it converts names (mixtures of experts), and
    since the model may not have those modules. A default that is a regular expression is left to PEFT.
    """
    if lora.target_modules is not None:
        return lora
    default = LoraModel.target_module_mapping.get(model.config.model_type)
    if isinstance(default, str) and _matches(model, LoraConfig(target_modules=default)):
        return lora
    has_all = isinstance(default, list) and not _find_unmatched(model, default, [])
    return lora.model_copy(update={"target_modules": default if has_all else ALL_LINEAR})


def explain_default(model: PreTrainedModel, lora: LoraSpec) -> str | None:
    """A sentence for the person where `with_default` chooses `all-linear`, else None."""
    if lora.target_modules == ALL_LINEAR or with_default(model, lora).target_modules != ALL_LINEAR:
        return None
    experts = find_expert_parameters(model, lora.model_copy(update={"target_modules": ALL_LINEAR}))
    others = (
        f", and so do the experts' weights ({', '.join(experts)}): name linear layers to leave those out"
        if experts
        else ""
    )
    return (
        f"PEFT has no default for lora.target_modules in models of type {model.config.model_type!r}, so "
        f"every linear layer gets an adapter, as with {ALL_LINEAR!r}: "
        f"{', '.join(linear_names(model))}{others}."
    )


def find_excluded(model: PreTrainedModel, lora: LoraSpec) -> str | None:
    """A regular expression for the modules that get no adapter whatever the targets are; None: no module.

    Text never passes some, such as a vision tower: their adapters would never be trained. `all-linear` leaves
    out routers that are linear layers with several outputs, and what PEFT refuses (the output projection of
    Mamba, which transformers passes by).
    """
    excluded = _outside_text(model)
    if lora.target_modules == ALL_LINEAR:
        excluded += [re.escape(path) for path, module in model.named_modules() if _is_router(module)]
        refused = {path.rpartition(".")[2] for path in _linear_paths(model) if not _is_taken(model, path)}
        excluded += [rf"(.+\.)?{re.escape(name)}" for name in sorted(refused)]
    return f"({'|'.join(excluded)})" if excluded else None


def _outside_text(model: PreTrainedModel) -> list[str]:
    """Regular expressions for the parts of the model that text does not pass."""
    if model.config.get_text_config() is model.config:
        return []
    text = {id(module) for module in model.get_decoder().modules()}
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    backbone = getattr(model, model.base_model_prefix, model)
    return [
        rf"{re.escape(prefix + name)}(\..+)?"
        for name, child in backbone.named_children()
        if id(child) not in text
    ]


def _is_router(module: nn.Module) -> bool:
    """Whether a linear layer of transformers' own class returns several tensors, as Llama 4's router does."""
    if not isinstance(module, nn.Linear) or not type(module).__module__.startswith("transformers."):
        return False
    weight = module.weight
    with torch.no_grad():
        output = module(torch.zeros(1, module.in_features, device=weight.device, dtype=weight.dtype))
    return not isinstance(output, torch.Tensor)


def _is_taken(model: PreTrainedModel, path: str) -> bool:
    """Whether PEFT puts LoRA on a linear layer of this name in such a model, and it has an effect there."""
    name = path.rpartition(".")[2]
    if name in NEVER_CALLED.get(model.config.model_type, ()):
        return False
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name)
    except ValueError:
        return False
    return True


def find_expert_parameters(model: PreTrainedModel, lora: LoraSpec) -> list[str]:
    """Names of the parameters that PEFT adapts for these targets: experts' weights that once were layers."""
    config = LoraConfig(target_modules=lora.target_modules)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return []  # PEFT refuses the names, and says why, when the adapter is attached.
    return sorted(config.target_parameters or ())


def linear_names(model: PreTrainedModel) -> list[str]:
    """Short names of the linear layers that can be targets, sorted."""
    return sorted({_short(path) for path in _linear_paths(model) if _is_taken(model, path)})


def _short(path: str) -> str:
    """The last part of a module's name; of a numbered module, its parent's, too."""
    own = path.rpartition(".")[2]
    return ".".join(path.split(".")[-2:]) if own.isdigit() else own


def _linear_paths(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that text passes, without the output layer, which can't be a target."""
    output, outside = model.get_output_embeddings(), _outside_text(model)
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and not _is_router(module)
        and not any(re.fullmatch(pattern, path) for pattern in outside)
    ]


def _check_targets(model: PreTrainedModel, names: list[str], saved: list[str]) -> None:
    unmatched = _find_unmatched(model, names, saved)
    if not unmatched:
        return
    listed = ", ".join(map(repr, unmatched))
    whole = [name for name in unmatched if name in saved]
    if whole:
        raise BadTarget(
            f"lora.target_modules has {listed}, which lora.modules_to_save trains whole already.",
            param="lora.target_modules",
            hint="Name each module in one of the two.",
        )
    raise BadTarget(
        f"lora.target_modules has {listed}, which match{'es' if len(unmatched) == 1 else ''} nothing in the "
        f"base model.{_suggest(unmatched, _linear_paths(model))}",
        param="lora.target_modules",
        hint=f"{TARGET_HINT} Those of this model: {', '.join(linear_names(model))}.",
    )


def _find_unmatched(model: PreTrainedModel, names: Iterable[str], saved: list[str]) -> list[str]:
    """The names that PEFT finds no module for: one matches a module's whole name, or its end after a dot.

    Names that the experts of a mixture had before transformers 5 are understood as PEFT understands them:
    they stand for parameters now.
    """
    config = LoraConfig(target_modules=list(names), modules_to_save=saved or None)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return []  # PEFT refuses the names, and says why, when the adapter is attached.
    left = [name for name in names if name in (config.target_modules or ())]
    return [
        name
        for name in left
        if not _matches(model, LoraConfig(target_modules=[name], modules_to_save=saved or None))
    ]


def _matches(model: PreTrainedModel, config: LoraConfig) -> bool:
    return any(
        check_target_module_exists(config, path) and not _is_router(module)
        for path, module in model.named_modules()
        if path
    )


def _check_module_to_save(model: PreTrainedModel, name: str, *, is_4bit: bool) -> None:
    """Raise BadTarget for a name that PEFT would ignore, as it matches nothing, and for 4-bit weights."""
    found = [(path, module) for path, module in model.named_modules() if path and path.endswith(name)]
    if not found:
        paths = [
            path
            for path, module in model.named_modules()
            if path and next(module.parameters(), None) is not None
        ]
        raise BadTarget(
            f"The base model has no module {name!r} to train whole.{_suggest([name], paths)}",
            param="lora.modules_to_save",
            hint=_SAVE_HINT,
        )
    quantized = linears_to_quantize(model) if is_4bit else {}
    if any(path == held or held.startswith(f"{path}.") for held in quantized for path, _module in found):
        raise BadTarget(
            f"{name!r} is held in 4 bits, so it can't be trained whole.",
            param="lora.modules_to_save",
            hint=f"Set quantization.load_in_4bit to false. {_SAVE_HINT}",
        )


def _suggest(unknown: list[str], paths: list[str]) -> str:
    """` Did you mean …?` with the nearest name for each unknown one; empty where none is near."""
    own_names = sorted(set(map(_short, paths)))
    near = []
    for name in unknown:
        candidates = paths if "." in name else own_names
        near += difflib.get_close_matches(name, candidates, n=1)
    return f" Did you mean {', '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
