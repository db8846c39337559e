"""Llama, as the plan of optimizations sees a model's family."""

from worker.planning.optimizations import ModelFamily

LLAMA = ModelFamily(
    "llama",
    takes_attention=True,
    changes_attention=False,
    drops_attention=False,
    drops_others=False,
    head_width=128,
)
