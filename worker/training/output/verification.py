"""Verifies a finished adapter from its files, loaded as serving loads them.

Prompts must be rendered as they were in training, and the adapter must change the model's logits.

B: one row. L: its tokens. V: the vocabulary.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from app.core.errors.jobs import AdapterInert, LossNotFinite, TemplateMismatch
from worker.models.files import description
from worker.templates.choice import set_template
from worker.templates.prompt_check import check_prompts
from worker.templates.renderer import template_sha256
from worker.templates.token_rows import Sample, TokenRow

_MAX_TOKENS = 256


def verify_prompts(
    folder: Path, samples: Sequence[Sample], trained_template_sha256: str, *, moment: datetime
) -> None:
    """Render the samples with the tokenizer and template in the folder, at the moment of the training.

    Raises TemplateMismatch.
    """
    tokenizer = description.load_tokenizer(folder)
    set_template(tokenizer)
    check_prompts(samples, tokenizer, moment=moment)
    if template_sha256(tokenizer) != trained_template_sha256:
        raise TemplateMismatch("The chat template saved with the adapter is not the one it was trained with.")


def verify_weights(base: PreTrainedModel, folder: Path, row: TokenRow) -> None:
    """Compare logits with and without the adapter. Raises AdapterInert (equal), LossNotFinite."""
    input_ids_BL = torch.tensor([row.input_ids[:_MAX_TOKENS]], device=base.device)
    with torch.no_grad():
        base_BLV = base.eval()(input_ids=input_ids_BL).logits
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        adapted_BLV = model(input_ids=input_ids_BL).logits
    if not adapted_BLV.isfinite().all():
        raise LossNotFinite(
            "With the finished adapter the model's output is NaN or infinite.",
            hint="Lower training.learning_rate.",
        )
    if torch.equal(adapted_BLV, base_BLV):
        raise AdapterInert(
            "The finished adapter does not change what the model says.",
            hint="Train for more steps or with a higher training.learning_rate.",
        )
