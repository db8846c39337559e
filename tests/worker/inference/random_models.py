"""Tiny models of any family with random weights, and the tokens that transformers generates with a model."""

from collections.abc import Sequence

import torch
import transformers
from transformers import PreTrainedModel

_SIZES: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}


def make_random_model(family: str, **options: object) -> PreTrainedModel:
    """A model with random weights that are large enough for its texts to vary; None leaves a size out."""
    named = [f"{family}ForCausalLM", f"{family}LMHeadModel"]
    kind = next(getattr(transformers, name) for name in named if hasattr(transformers, name))
    given = {name: value for name, value in {**_SIZES, **options}.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**given))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def generate(
    model: torch.nn.Module, prompt_ids: Sequence[int], count: int, *, end: int | None = None
) -> list[int]:
    """The likeliest `count` tokens after the prompt, or those until `end`."""
    ids = torch.tensor([prompt_ids])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=end,
        pad_token_id=0,
    )
    return made[0, ids.shape[1] :].tolist()
