"""The first steps of a job in bfloat16 lose as little to rounding as PEFT's and transformers' layers do.

After the first steps of the optimizer what an adapter adds is smaller than the rounding of the residual
stream, so a sum in the wrong order loses all of it. Seen in the loss, against a run in float32.
"""

from functools import partial
from itertools import product

import pytest
import torch
from peft import PeftModel

from tests.worker.decoder.models import FAMILIES, make_examples, make_model
from worker.decoder.operations import TorchOperations
from worker.training.batches import Collator, PaddingFreeCollator
from worker.training.loss import Decoder, score
from worker.training.optimizations import varlen_attention
from worker.training.optimizations.explicit_decoder import ExplicitDecoder
from worker.training.optimizations.lora_layers import LIBRARY_KERNELS, FusedLora

STEPS = 5


def train(
    model: PeftModel, dtype: torch.dtype, *, is_packed: bool, decoder: Decoder | None = None
) -> torch.Tensor:
    """The mean loss of each row at each step, [steps, rows]."""
    batch = PaddingFreeCollator()(make_examples()) if is_packed else Collator(0)(make_examples())
    if is_packed:
        model.get_base_model().set_attn_implementation(varlen_attention.NAME)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            scores = score(model.get_base_model(), batch, decoder)
        loss = -scores.log_prob_sum / len(scores.log_probs_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        of_rows = scores.log_probs_N.detach().split(
            [len(example["input_ids"]) - 1 for example in make_examples()]
        )
        losses.append([-float(of_row.mean()) for of_row in of_rows])
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("is_4bit", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_as_near_to_float32_as_without_optimizations(family: str, is_4bit: bool) -> None:
    """For each kind of batch: the explicit decoder where rows are packed, else LoRA layers one by one."""
    varlen_attention.register(varlen_attention.row_by_row)
    dtype = torch.bfloat16
    away: dict[str, list[torch.Tensor]] = {"plain": [], "optimized": []}
    for is_packed, dropout in product((False, True), (0.0, 0.1)):
        make = partial(make_model, family, is_4bit=is_4bit, dropout=dropout)
        exact = train(make(torch.float32), torch.float32, is_packed=is_packed)
        assert exact[-1].mean() < exact[0].mean() - 0.01
        away["plain"].append(train(make(dtype), dtype, is_packed=is_packed) - exact)
        fast = make(dtype)
        decoder = None
        if is_packed:
            decoder = ExplicitDecoder(
                fast, dtype, TorchOperations(), LIBRARY_KERNELS, varlen_attention.row_by_row
            )
        else:
            FusedLora(fast, dtype)
        away["optimized"].append(train(fast, dtype, is_packed=is_packed, decoder=decoder) - exact)

    # Over kinds of batches, rows and steps: a single loss may be near to float32's by chance.
    expected, found = (float(torch.stack(runs).square().mean().sqrt()) for runs in away.values())
    assert found <= 1.5 * expected
