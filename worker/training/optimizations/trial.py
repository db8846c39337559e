"""Does a fast way compute what the plain one does? Tried on rows of the job, with loss and every gradient.

A new adapter's B is zero, and with it all that a wrong A could do; so B gets small random numbers meanwhile.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel

from worker.training.batches import Example
from worker.training.memory import RandomState

# How far apart two ways of computing the same may come out, in the Euclidean norm. In 16 bits a deep model
# amplifies rounding (32 random layers: 6%), so there two plain ways are compared, too: a fast one may be
# three times as far off as they are, up to a limit. (Those round alike where a row is not padded.)
_TOLERANCE = 1e-3
_TOLERANCE_IN_16_BITS = 0.05
_MOST_TOLERANCE_IN_16_BITS = 0.2
ROWS = 3
_LONGEST = 48
# Gradients in float16 would vanish without; no other type minds.
_LOSS_SCALE = 1024
_B_STD = 0.02

ComputeLoss = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Pass:
    """What a forward and backward pass gave."""

    loss: float
    gradients: dict[str, torch.Tensor]


def make_examples(examples: list[Example]) -> list[Example]:
    """A few rows of the job, short and of different lengths, all of whose tokens are learned."""
    found: list[Example] = []
    for place, example in enumerate(examples[:ROWS]):
        ids = list(example["input_ids"])[: max(2, _LONGEST // (1 + place))]
        found.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return found


def run_pass(model: PeftModel, compute_loss: ComputeLoss) -> Pass:
    """Loss and gradients, none of which stay behind, and the same random numbers each time."""
    before = RandomState()
    torch.manual_seed(0)
    try:
        loss = compute_loss()
        (loss * _LOSS_SCALE).backward()
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        gradients = {name: weight.grad for name, weight in trained if weight.grad is not None}
        return Pass(loss.item(), gradients)
    finally:
        model.zero_grad(set_to_none=True)
        before.restore()


def find_difference(plain: Pass, fast: Pass, tolerance: float) -> str | None:
    """What differs by more than rounding, in words; None: nothing does."""
    if plain.gradients.keys() != fast.gradients.keys():
        return "gradients are missing"
    # Written so that a NaN fails too.
    if not abs(fast.loss - plain.loss) <= tolerance * abs(plain.loss):
        return f"the loss is {fast.loss:.6g} and should be {plain.loss:.6g}"
    if not (away := distance(plain, fast)) <= tolerance:
        return f"the gradients are off by {away:.2g} of their norm, {tolerance:.2g} would be rounding"
    return None


def distance(plain: Pass, other: Pass) -> float:
    """How far the gradients are apart, as a share of their norm."""
    names = sorted(plain.gradients)
    away = _norm(other.gradients[name] - plain.gradients[name] for name in names)
    of = _norm(plain.gradients[name] for name in names)
    return away / of if of else math.inf * away if away else 0.0


@contextmanager
def probing(model: PeftModel) -> Iterator[None]:
    """Within it every B is small and random, so that all of an adapter matters."""
    matrices = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    before = [weight.detach().clone() for weight in matrices]
    random = RandomState()
    was_training = model.training
    try:
        torch.manual_seed(0)
        for weight in matrices:
            torch.nn.init.normal_(weight, std=_B_STD)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(matrices, before, strict=True):
                weight.copy_(old)
        model.train(was_training)
        random.restore()


def computes_in_32_bits(model: PeftModel, mixed: str) -> bool:
    """Whether nothing is rounded to 16 bits under this mixed precision (accelerate's word for it)."""
    return mixed == "no" and model.dtype is torch.float32


def find_tolerance(plain: Pass, plain_too: Pass | None) -> float:
    """How far off a fast way may be. `plain_too`: the same in other shapes; None: there is no rounding."""
    if plain_too is None:
        return _TOLERANCE
    return min(max(_TOLERANCE_IN_16_BITS, 3 * distance(plain, plain_too)), _MOST_TOLERANCE_IN_16_BITS)


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    norms = [tensor.float().norm() for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0
