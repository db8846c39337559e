"""What a base model's structure says about a job, before its weights are there: for preflight and the job.

The model is on the meta device; nothing here changes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.core.specs.job import JobSpec
from worker.models import lora, targets
from worker.models.files import prequantized, vocabulary
from worker.planning import packing
from worker.planning.model_shape import count_embedding_rows

_TOKENS_SHOWN = 5


@dataclass(frozen=True)
class ModelFinding:
    """Something that the person should know: a warning of the preflight, and of the job."""

    code: str
    message: str


def check_model(
    model: PreTrainedModel, spec: JobSpec, tokenizer: PreTrainedTokenizerBase
) -> list[ModelFinding]:
    """What should be known about this job on this base model.

    Raises BadTarget, ModelUnreadable, and InvalidRequest for packing that would let rows read each other.
    """
    prequantized.check(model.config, spec.base_model)
    targets.check_names(model, spec)
    if spec.training.packing:
        packing.refuse_leaking(model.config)
    findings = list(_check_tokenizer(tokenizer, count_embedding_rows(model)))
    stored = prequantized.describe(model.config, load_in_4bit=spec.quantization.load_in_4bit)
    if stored:
        findings.append(ModelFinding("prequantized", stored))
    if chosen := targets.explain_default(model, spec.lora):
        findings.append(ModelFinding("default_targets", chosen))
    if partial := lora.explain_dropout(model, spec.lora):
        findings.append(ModelFinding("partial_dropout", partial))
    return findings


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> Iterator[ModelFinding]:
    if beyond := vocabulary.check_tokenizer(tokenizer, rows):
        shown = ", ".join(map(repr, beyond[:_TOKENS_SHOWN]))
        more = f" and {len(beyond) - _TOKENS_SHOWN} more" if len(beyond) > _TOKENS_SHOWN else ""
        yield ModelFinding(
            "tokens_without_embedding",
            f"The tokenizer has tokens that the base model's embedding of {rows:,} rows does not have: "
            f"{shown}{more}. Text with one of them is refused.",
        )
    if tokenizer.eos_token_id is None:
        yield ModelFinding(
            "no_end_token",
            "The tokenizer has no end token (eos_token), so rows do not end with one. Unless the chat "
            "template ends an answer with a token of its own, the adapter does not learn to stop: it "
            "generates up to max_new_tokens.",
        )
