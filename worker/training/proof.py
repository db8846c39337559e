"""Is the finished adapter right? It is loaded afresh from its files and must change what the model says.

B: one row. L: its tokens. V: the vocabulary.
"""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from app.core.errors import AdapterInert, LossNotFinite
from worker.formatting import TokenRow

_MAX_TOKENS = 256


def prove(base: PreTrainedModel, folder: Path, row: TokenRow) -> None:
    """Compare logits with the adapter and without. Raises AdapterInert (the same), LossNotFinite (NaN)."""
    input_ids_BL = torch.tensor([row.input_ids[:_MAX_TOKENS]], device=base.device)
    with torch.no_grad():
        plain_BLV = base.eval()(input_ids=input_ids_BL).logits
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        adapted_BLV = model(input_ids=input_ids_BL).logits
    if not adapted_BLV.isfinite().all():
        raise LossNotFinite(
            "With the finished adapter the model's output is NaN or infinite.",
            hint="Lower training.learning_rate.",
        )
    if torch.equal(adapted_BLV, plain_BLV):
        raise AdapterInert(
            "The finished adapter does not change what the model says.",
            hint="Train for more steps or with a higher training.learning_rate.",
        )
