"""Checks that a base model's attention keeps packed rows apart. Knows no trainer.

B: sequences in a batch. L: tokens of a sequence. V: the vocabulary.
"""

import torch
from peft import PeftModel

from app.core.errors import InvalidRequest

_ROW_LENGTH = 8


def refuse_leaking(model: PeftModel) -> None:
    """Raise InvalidRequest where a packed row can read the one before it.

    transformers separates rows by their position ids in most models, but not, for one, in models with a
    recurrent state. So this changes the first of two rows: the logits of the second must stay bitwise equal.
    """
    device = model.device
    positions_BL = torch.arange(_ROW_LENGTH, device=device).repeat(2)[None]
    first_BL = torch.arange(2 * _ROW_LENGTH, device=device)[None]
    second_BL = first_BL.clone()
    second_BL[:, :_ROW_LENGTH] += 1
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = [
            model(input_ids=ids_BL, position_ids=positions_BL, use_cache=False).logits[:, _ROW_LENGTH:]
            for ids_BL in (first_BL, second_BL)
        ]
    model.train(was_training)
    if not torch.equal(*logits):
        raise InvalidRequest(
            "Rows packed into one sequence would read each other in this base model.",
            param="training.packing",
            hint="Set training.packing to false.",
        )
