"""One answer's logits, token by token, by transformers' own generation code with the model's own cache.

`generate` prepares the inputs and the cache as it does for every model (Mamba's states, LFM2's convolutions,
Gemma's windows), then hands them to `custom_generate` instead of its sampling loop. The steps after that
are those of the loop in `GenerationMixin._sample` (seen in transformers 5.17 and 5.23), with the choice of
the token left to the caller.
Shape letters: L tokens so far, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel

from worker.inference.sampling.sampler import Logprobs, score_tokens

_CACHES = ("past_key_values", "cache_params", "state")


def use_plain_generation(model: PreTrainedModel) -> None:
    """Drop the model's own generation settings: sampling is the engine's, and the cache is never compiled."""
    model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False, disable_compile=True)


class TextSteps:
    """The logits of one text. The cache holds the text up to the token before the last one passed in.

    Unusable after an error: a model extends its cache layer by layer.
    """

    def __init__(self, model: PreTrainedModel, prompt_ids: Sequence[int]) -> None:
        # Of no type: torch types a module's private methods as tensors.
        self._model = cast(Any, model)
        ids_1L = torch.tensor([prompt_ids], device=model.device)
        state = self._model.generate(
            ids_1L, attention_mask=torch.ones_like(ids_1L), max_new_tokens=1, custom_generate=_prepared
        )
        self._ids_1L, self._config, self._inputs = state

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache."""
        caches = [self._inputs[name] for name in _CACHES if self._inputs.get(name) is not None]
        return sum(tensor.nbytes for tensor in _tensors(caches))

    @torch.no_grad()
    def first_logits(self) -> torch.Tensor:
        """Read the prompt. Returns the logits [1, V] of the token after it."""
        return self._logits(self._model._prefill(self._ids_1L, self._config, self._inputs))

    @torch.no_grad()
    def next_logits(self, token_1: torch.Tensor) -> torch.Tensor:
        """Read one more token. Returns the logits [1, V] of the token after it."""
        ids_1L = torch.cat([self._ids_1L, token_1[None]], dim=-1)
        inputs = self._model.prepare_inputs_for_generation(ids_1L, next_sequence_length=1, **self._inputs)
        logits_1V = self._logits(self._model(**inputs, return_dict=True))
        self._ids_1L = ids_1L
        return logits_1V

    def _logits(self, outputs: Any) -> torch.Tensor:
        self._inputs = self._model._update_model_kwargs_for_generation(outputs, self._inputs)
        # A copy, so that the logits of a whole prompt are freed.
        logits_1V: torch.Tensor = outputs.logits[:, -1].clone()
        return logits_1V


@torch.no_grad()
def sum_hidden_states(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """The sum [H], over the tokens of a text, of the hidden states that the model's output layer reads."""
    ids_1L = torch.tensor([token_ids], device=model.device)
    outputs = model.base_model(
        ids_1L, attention_mask=torch.ones_like(ids_1L), use_cache=False, return_dict=True
    )
    hidden_LH: torch.Tensor = outputs.last_hidden_state[0]
    return hidden_LH.sum(0, dtype=torch.float32)


@torch.no_grad()
def score_text(model: PreTrainedModel, token_ids: Sequence[int], top_count: int) -> Logprobs:
    """The log-probabilities of all tokens of a text but the first."""
    ids_1L = torch.tensor([token_ids], device=model.device)
    outputs = model(
        input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), use_cache=False, return_dict=True
    )
    return score_tokens(outputs.logits[0, :-1], ids_1L[0, 1:], top_count)


def _prepared(
    _model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: object,
    stopping_criteria: object,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> tuple[torch.Tensor, GenerationConfig, dict[str, Any]]:
    """What `generate` passes to a decoding method; the names of the parameters are its own."""
    return input_ids, generation_config, model_kwargs


def _tensors(value: object) -> list[torch.Tensor]:
    """The distinct tensors in a cache, whatever its class: caches hold layers, and layers hold tensors."""
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found[id(one)] = one
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, Cache) or type(one).__module__.startswith("transformers.cache_utils"):
            waiting += vars(one).values()
    return list(found.values())
