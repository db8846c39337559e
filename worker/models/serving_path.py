"""Which code of the engine generates for a base model or an adapter, as far as their settings tell.

The paged engine (`worker/inference/model`) batches requests; what it can't compute, transformers and PEFT
compute (`worker/inference/general`), more slowly. A base model that passes here may still be found to differ
when the engine loads it; the engine then uses the general path by itself.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PretrainedConfig

from app.core.engine.serving import find_config_obstacle
from worker.models import fused_experts, routers
from worker.models.files import description

_ON_EMBEDDING = "lora.target_modules (the embedding layer)"
# Settings of PEFT's configuration under their names in a job's spec, which adapters' records have.
_SPEC_NAMES = {
    "use_dora": "lora.use_dora",
    "modules_to_save": "lora.modules_to_save",
    "bias": "lora.bias",
    "target_parameters": "lora.target_parameters",
    "fan_in_fan_out": "lora.target_modules (transposed layers)",
}


def find_model_obstacle(config: PretrainedConfig) -> str | None:
    """Why the paged engine can't compute a model with this configuration, or None."""
    return find_config_obstacle(config.get_text_config().to_dict())


def find_folder_obstacle(folder: Path) -> str | None:
    """`find_model_obstacle` of the base model in a folder. Raises ModelUnreadable."""
    return find_model_obstacle(description.read_config(folder))


def find_parameters_obstacle(folder: Path, names: Collection[str]) -> str | None:
    """Why the paged engine can't apply adapters on these parameters of the base model in a folder, or None.

    Raises ModelUnreadable.
    """
    modules = dict(description.build_empty(folder).named_modules())
    for name in names:
        holder, _, parameter = name.rpartition(".")
        obstacle = find_parameter_obstacle(modules[holder], parameter) if holder in modules else None
        if obstacle:
            return obstacle
    return None


def find_parameter_obstacle(module: nn.Module, parameter: str) -> str | None:
    """Why the paged engine can't apply an adapter on a module's parameter, or None."""
    if parameter in fused_experts.PARAMETERS:
        return fused_experts.find_layout_obstacle(module)
    if parameter == routers.WEIGHT:
        return None if isinstance(module, nn.Linear) else routers.find_router_obstacle(module)
    return f"the parameter {parameter!r}"


def find_obstacles(model: PeftModel, *, load_in_4bit: bool = False) -> list[str]:
    """What in a base model, and in the settings of its adapter, the paged engine can't compute.

    `load_in_4bit`: the model has no weights yet, and its layers will be held in 4 bits, untransposed.
    """
    of_model = find_model_obstacle(model.get_base_model().config)
    return ([of_model] if of_model else []) + find_adapter_obstacles(model, load_in_4bit=load_in_4bit)


def explain(obstacles: Sequence[str]) -> str:
    """A sentence for the person whose adapter has these obstacles."""
    return (
        "The finished adapter will be served on the engine's general path, by transformers and PEFT: one "
        f"request after another, more slowly than others. The reason: {', '.join(obstacles)}."
    )


def find_adapter_obstacles(model: PeftModel, *, load_in_4bit: bool = False) -> list[str]:
    """What in an adapter the paged engine can't apply, as `name_obstacles` names it."""
    config = model.peft_config["default"]
    wrappers = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    settings: dict[str, Any] = {
        "use_dora": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "bias": config.bias != "none",
        "target_parameters": not all(map(_is_applied, wrappers)),
        "fan_in_fan_out": config.fan_in_fan_out and not load_in_4bit,
    }
    found = [setting for setting, is_there in settings.items() if is_there]
    return name_obstacles(found, (name for name, _parameter in model.named_parameters()))


def name_obstacles(settings: Collection[str], weights: Iterable[str]) -> list[str]:
    """The obstacles among an adapter's settings, by their names in PEFT's configuration, and its weights.

    They have the names of a job's spec, for imported adapters too, whose settings are shown by these names.
    What no spec has stays under PEFT's name.
    """
    known = [spec_name for name, spec_name in _SPEC_NAMES.items() if name in settings]
    others = [name for name in settings if name not in _SPEC_NAMES]
    on_embedding = any("lora_embedding_" in name for name in weights)
    return known + others + ([_ON_EMBEDDING] if on_embedding else [])


def _is_applied(wrapper: ParamWrapper) -> bool:
    """Whether the paged engine applies the adapter of a targeted parameter."""
    return find_parameter_obstacle(wrapper.get_base_layer(), wrapper.parameter_name) is None
