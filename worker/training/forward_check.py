"""Checks that a base model computes anything at all, before the job reads all its rows. Knows no trainer.

B: sequences in a batch. L: tokens of a sequence. V: the vocabulary.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from worker.models.files.description import MODEL_HINT
from worker.models.files.reading import reading

_TOKENS = 8


@torch.no_grad()
def refuse_broken(model: PreTrainedModel, folder: Path) -> None:
    """Raise ModelUnreadable where a pass over a few tokens fails, or results in no finite numbers.

    Weights in 4 bits are not compared with the shapes of their layers when they are loaded, for one.
    """
    with reading(f"The base model {folder.name!r}", hint=MODEL_HINT):
        vocabulary = model.config.get_text_config().vocab_size
        tokens_BL = torch.arange(_TOKENS, device=model.device)[None] % vocabulary
        logits_BLV = model(input_ids=tokens_BL, use_cache=False).logits
        if not logits_BLV.isfinite().all():
            raise ValueError(
                "its logits are not finite numbers: it has weights that are none, or they overflow in "
                f"{str(logits_BLV.dtype).removeprefix('torch.')}"
            )
