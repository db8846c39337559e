"""Llama, as the choice of fast ways sees a model's family."""

from worker.planning.optimizations import ModelFamily

LLAMA = ModelFamily(
    "llama",
    takes_attention=True,
    changes_attention=False,
    head_width=128,
    shapes_logits=False,
    adds_losses=False,
)
