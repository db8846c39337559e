"""The LoRA adapter of a spec, added to a model by PEFT: to train it, or on empty weights to count them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from app.core.errors.jobs import BadTarget
from app.core.specs.job import LoraSpec
from worker.models import targets
from worker.models.files.error_text import describe
from worker.models.files.reading import is_caused_by_content

_ADAPTER = "default"


def attach(model: PreTrainedModel, lora: LoraSpec) -> PeftModel:
    """Add a new adapter to the model. Raises BadTarget.

    The inputs of experts' weights can't be dropped out, as these are parameters and not layers: there the
    dropout falls on the linear layers alone, and the adapter's own config says 0, since PEFT refuses to load
    any other value.
    """
    lora = targets.with_default(model, lora)
    config = lora_config(lora)
    config.exclude_modules = targets.find_excluded(model, lora)
    experts = targets.find_expert_parameters(model, lora)
    if experts:
        _check_expert_settings(lora, experts)
        config.lora_dropout = 0.0
    # Before PEFT changes the model's structure.
    hint = f"{targets.TARGET_HINT} Those of this model: {', '.join(targets.linear_names(model))}."
    try:
        with _false_warnings_ignored():
            adapted = get_peft_model(model, config)
    except Exception as error:
        if not is_caused_by_content(error):
            raise
        raise BadTarget(f"The base model can't take this adapter: {describe(error)}.", hint=hint) from error
    if experts:
        _drop_inputs_of_linears(adapted, lora.dropout)
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


def explain_dropout(model: PreTrainedModel, lora: LoraSpec) -> str | None:
    """A sentence for the person where the dropout does not fall on all adapted weights, else None."""
    experts = targets.find_expert_parameters(model, targets.with_default(model, lora))
    if not lora.dropout or not experts:
        return None
    return (
        f"lora.dropout {lora.dropout:g} falls on the linear layers only: PEFT has no dropout for adapters on "
        f"the experts' weights ({', '.join(experts)})."
    )


@contextmanager
def _false_warnings_ignored() -> Iterator[None]:
    """PEFT 0.21 looks for the names of rank_pattern among modules only, and here they are of parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        yield


def _check_expert_settings(lora: LoraSpec, experts: list[str]) -> None:
    """Raise BadTarget for a setting that PEFT does not have for parameters."""
    if lora.use_dora:
        raise BadTarget(
            f"lora.use_dora does not work on the experts' weights ({', '.join(experts)}).",
            hint="Set lora.use_dora to false, or lora.target_modules to names of linear layers.",
        )


def _drop_inputs_of_linears(model: PeftModel, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and probability:
            module.lora_dropout[_ADAPTER] = nn.Dropout(probability)
