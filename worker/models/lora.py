"""The LoRA adapter of a spec, added to a model by PEFT: to train it, or on empty weights to count them."""

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from app.core.errors.jobs import BadTarget
from app.core.specs.job import LoraSpec
from worker.models import targets
from worker.models.reading import describe, is_caused_by_content


def attach(model: PreTrainedModel, lora: LoraSpec) -> PeftModel:
    """Add a new adapter to the model. Raises BadTarget."""
    lora = targets.with_default(model, lora)
    config = lora_config(lora)
    config.exclude_modules = targets.find_excluded(model, lora)
    try:
        adapted = get_peft_model(model, config)
    except Exception as error:
        if not is_caused_by_content(error):
            raise
        hint = f"{targets.TARGET_HINT} Those of this model: {', '.join(targets.linear_names(model))}."
        raise BadTarget(f"The base model can't take this adapter: {describe(error)}.", hint=hint) from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise BadTarget(
            "An adapter on the output layer (lm_head) would never be trained.", hint=targets.TARGET_HINT
        )
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
