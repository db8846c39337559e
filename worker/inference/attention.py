"""Attention over the slot cache, in the place where transformers calls an attention function by name.

The model's own code is left as it is and is given no cache: this function stores keys and values itself. It
knows each layer's sliding window and soft cap, and refuses what it does not know.
Shape letters: B rows, T tokens of this step, L keys, H query heads, G key heads, D dimension.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from worker.inference.failures import ModelUnsupported
from worker.inference.kv_cache import KVCache

NAME = "tunesmith_slots"


@dataclass
class Step:
    """Where the tokens of one forward pass stand: which rows, which positions, how many keys they may see."""

    cache: KVCache
    first_row: int
    positions_BT: torch.Tensor
    key_count: int
    # Position of the first token where one prompt is read; None where each row makes one token.
    prefill_start: int | None
    windows: dict[int, int | None] = field(default_factory=dict)
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Shape [B, 1, T, L], true where a token may look; None where plain causal attention does it."""
        if window not in self._masks:
            self._masks[window] = self._new_mask(window)
        return self._masks[window]

    def _new_mask(self, window: int | None) -> torch.Tensor | None:
        fits_window = window is None or self.key_count <= window
        if self.prefill_start == 0 and fits_window:
            return None
        keys_L = torch.arange(self.key_count, device=self.positions_BT.device)
        mask_BTL = keys_L <= self.positions_BT[:, :, None]
        if window is not None:
            mask_BTL = mask_BTL & (keys_L > self.positions_BT[:, :, None] - window)
        return mask_BTL[:, None]


def attend(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    step: Step | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer; answers [B, T, H, D]."""
    if step is None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise ModelUnsupported("The base model's attention is of a kind that the engine does not know.")
    index = module.layer_idx
    assert isinstance(index, int)
    step.windows[index] = sliding_window
    keys_BLGD, values_BLGD = _store(step, index, key_BGTD, value_BGTD)
    keys_BGLD, values_BGLD = keys_BLGD.transpose(1, 2), values_BLGD.transpose(1, 2)
    mask = step.mask(sliding_window)
    if softcap is not None:
        out_BHTD = _soft_capped(query_BHTD, keys_BGLD, values_BGLD, mask, scaling, softcap)
    elif query_BHTD.shape[2] == 1:
        out_BHTD = _decode(query_BHTD, keys_BGLD, values_BGLD, mask, scaling)
    else:
        groups = query_BHTD.shape[1] // keys_BGLD.shape[1]
        out_BHTD = functional.scaled_dot_product_attention(
            query_BHTD,
            _repeated(keys_BGLD, groups),
            _repeated(values_BGLD, groups),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
        )
    return out_BHTD.transpose(1, 2).contiguous(), None


def _store(
    step: Step, index: int, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write this step's keys and values; answers views of all that its rows may see."""
    layer = step.cache.layer(index, key_BGTD, value_BGTD)
    rows = slice(step.first_row, step.first_row + len(key_BGTD))
    for cache_RLGD, new_BGTD in ((layer.keys_RLHD, key_BGTD), (layer.values_RLHD, value_BGTD)):
        cache_BLGD = cache_RLGD[rows]
        if step.prefill_start is None:
            each_row_B = torch.arange(len(new_BGTD), device=new_BGTD.device)
            cache_BLGD[each_row_B, step.positions_BT[:, 0]] = new_BGTD[:, :, 0]
        else:
            end = step.prefill_start + new_BGTD.shape[2]
            cache_BLGD[:, step.prefill_start : end] = new_BGTD.transpose(1, 2)
    return layer.keys_RLHD[rows, : step.key_count], layer.values_RLHD[rows, : step.key_count]


def _decode(
    query_BHTD: torch.Tensor,
    keys_BGLD: torch.Tensor,
    values_BGLD: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """One token a row: the query heads of a key head take the place of tokens, so no key is copied."""
    batch, heads, _, dimension = query_BHTD.shape
    grouped = query_BHTD.reshape(batch, keys_BGLD.shape[1], -1, dimension)
    out = functional.scaled_dot_product_attention(
        grouped, keys_BGLD, values_BGLD, attn_mask=mask, scale=scaling
    )
    return out.reshape(batch, heads, 1, -1)


def _soft_capped(
    query_BHTD: torch.Tensor,
    keys_BGLD: torch.Tensor,
    values_BGLD: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Scores squeezed by tanh before the softmax, as in Gemma 2."""
    groups = query_BHTD.shape[1] // keys_BGLD.shape[1]
    scale = query_BHTD.shape[3] ** -0.5 if scaling is None else scaling
    scores_BHTL = query_BHTD @ _repeated(keys_BGLD, groups).transpose(2, 3) * scale
    scores_BHTL = torch.tanh(scores_BHTL / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores_BHTL.shape[-2:], dtype=torch.bool, device=scores_BHTL.device).tril()
    scores_BHTL = scores_BHTL.masked_fill(~mask, -torch.inf)
    weights_BHTL = scores_BHTL.softmax(-1, dtype=torch.float32).to(query_BHTD.dtype)
    return weights_BHTL @ _repeated(values_BGLD, groups)


def _repeated(states_BGLD: torch.Tensor, groups: int) -> torch.Tensor:
    return states_BGLD.repeat_interleave(groups, dim=1) if groups > 1 else states_BGLD


AttentionInterface.register(NAME, attend)
