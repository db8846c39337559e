"""The LoRA adapter of a spec, added to a model by PEFT: to train it, or on empty weights to count them."""

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.core.errors.jobs import BadTarget
from app.core.specs.job import LoraSpec

_TARGET_HINT = (
    'Set lora.target_modules to names of linear layers, as in ["q_proj", "v_proj"], or to "all-linear".'
)
_SAVE_HINT = 'Set lora.modules_to_save to names like "lm_head" or "embed_tokens".'


def attach(model: PreTrainedModel, lora: LoraSpec) -> PeftModel:
    """Add a new adapter to the model. Raises BadTarget."""
    _check_modules_to_save(model, lora.modules_to_save or [])
    try:
        adapted = get_peft_model(model, lora_config(lora))
    except ValueError as error:
        hint = f"{_TARGET_HINT} Those of this model: {', '.join(_linear_names(model))}."
        raise BadTarget(f"The base model can't take this adapter: {error}", hint=hint) from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise BadTarget("An adapter on the output layer (lm_head) would never be trained.", hint=_TARGET_HINT)
    return adapted


def lora_config(lora: LoraSpec) -> LoraConfig:
    """The adapter's settings in PEFT's terms. A whole alpha is an int, as other programs expect it."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        task_type="CAUSAL_LM",
    )


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the linear layers, except the output layer, which can't be a target."""
    output = model.get_output_embeddings()
    linears = (nn.Linear, Conv1D)
    named = [(path, module) for path, module in model.named_modules() if isinstance(module, linears)]
    return sorted({path.rsplit(".", 1)[-1] for path, module in named if module is not output})


def _check_modules_to_save(model: PreTrainedModel, names: list[str]) -> None:
    """Raise BadTarget for names that PEFT would ignore, as they match nothing, and for 4-bit weights."""
    for name in names:
        modules = [module for path, module in model.named_modules() if path and path.endswith(name)]
        if not modules:
            raise BadTarget(f"The base model has no module {name!r} to train whole.", hint=_SAVE_HINT)
        if not all(weight.is_floating_point() for module in modules for weight in module.parameters()):
            raise BadTarget(
                f"{name!r} is held in 4 bits, so it can't be trained whole.",
                hint=f"Set quantization.load_in_4bit to false. {_SAVE_HINT}",
            )
