"""Attention over the paged KV cache, also registered with transformers as an attention function.

The model gets no cache object: this function stores keys and values itself. It supports sliding windows and
soft caps, and raises ModelUnsupported for other kinds of attention. The tokens of all rows come in one
sequence. On a GPU Triton kernels compute it, elsewhere torch.
Shape letters: N tokens of this step, R rows, P blocks of a row, S tokens of a block, L keys, H query heads,
G key/value heads, D head dimension, M tiles; B is always 1.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from worker.inference.batching.block_manager import BLOCK_TOKENS, block_count
from worker.inference.failures import ModelUnsupported
from worker.inference.model.kv_cache import KVCache, LayerCache
from worker.models.device import on_device

NAME = "tunesmith_paged"


@dataclass(frozen=True)
class Chunk:
    """`count` consecutive tokens of one row from position `start` on: a chunk of a prompt, or one token.

    Until its position is known, `start` may be UNKNOWN (passes/forward.py).
    """

    row: int
    start: int
    count: int

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.count


@dataclass
class Step:
    """The rows and positions of the tokens of one forward pass, and the cache that they attend to."""

    cache: KVCache
    block_tables_RP: torch.Tensor
    rows_N: torch.Tensor
    positions_N: torch.Tensor
    # The chunks that the tokens come from, in order; empty in a decode step, where token n belongs to row n.
    chunks: list[Chunk] = field(default_factory=list)
    # Number of keys of the longest row. Not used by the kernels, which read the positions.
    key_count: int = 0
    uses_kernels: bool = False
    tiles_M4: torch.Tensor | None = None
    # The sliding window that each layer passed, by layer index.
    windows: dict[int, int | None] = field(default_factory=dict)
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def is_prefill(self) -> bool:
        """Whether the tokens are chunks of prompts."""
        return bool(self.chunks) or self.tiles_M4 is not None

    def use_kernels(self) -> None:
        """Compute this step with the kernels."""
        self.uses_kernels = True
        if self.chunks:
            tiles_M4 = torch.tensor(prompt_tiles(self.chunks), dtype=torch.int32)
            self.tiles_M4 = on_device(tiles_M4, self.positions_N.device)

    def decode_mask(self, window: int | None) -> torch.Tensor:
        """Boolean [N, 1, 1, L]: whether token n attends to key l."""
        if window not in self._masks:
            length = block_count(self.key_count) * BLOCK_TOKENS
            keys_L = torch.arange(length, device=self.positions_N.device)
            self._masks[window] = _visible(self.positions_N, keys_L, window)[:, None, None]
        return self._masks[window]


def prompt_tiles(chunks: list[Chunk]) -> list[tuple[int, int, int, int]]:
    """The tiles of `prompt_attention.tiles`."""
    from worker.kernels.serving import prompt_attention

    return prompt_attention.tiles([(chunk.row, chunk.start, chunk.count) for chunk in chunks])


def attend(
    module: nn.Module,
    query_BHND: torch.Tensor,
    key_BGND: torch.Tensor,
    value_BGND: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    step: Step | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in every layer. Returns [B, N, H, D] and no weights.

    `s_aux` are gpt-oss's attention sinks [H]: scores of a key without a value. Raises ModelUnsupported for
    position biases, and for calls without a `step`.
    """
    if step is None or others.get("position_bias") is not None:
        raise ModelUnsupported("The base model's attention is of a kind that the engine does not know.")
    scale = query_BHND.shape[3] ** -0.5 if scaling is None else scaling
    settings = LayerSettings(scale, sliding_window, softcap, s_aux)
    index = module.layer_idx
    assert isinstance(index, int)
    return attend_paged(index, query_BHND[0], key_BGND[0], value_BGND[0], step, settings)[None], None


@dataclass(frozen=True)
class LayerSettings:
    """The scale of a layer's scores, its sliding window, its soft cap and its sinks."""

    scale: float
    window: int | None
    softcap: float | None = None
    sinks_H: torch.Tensor | None = None


def attend_paged(
    index: int,
    query_HND: torch.Tensor,
    key_GND: torch.Tensor,
    value_GND: torch.Tensor,
    step: Step,
    settings: LayerSettings,
) -> torch.Tensor:
    """Store keys and values of the layer at `index`, and return what the queries attend to, [N, H, D]."""
    step.windows[index] = settings.window
    layer = step.cache.layer(index, key_GND, value_GND)
    if step.uses_kernels:
        return _with_kernels(query_HND, key_GND, value_GND, layer, step, settings)
    _store(key_GND, value_GND, layer, step)
    if step.chunks:
        return _prefill(query_HND, layer, step, settings)
    return _decode(query_HND, layer, step, settings)


def _with_kernels(
    query_HND: torch.Tensor,
    key_GND: torch.Tensor,
    value_GND: torch.Tensor,
    layer: LayerCache,
    step: Step,
    settings: LayerSettings,
) -> torch.Tensor:
    # Triton is not installed on a machine without a GPU.
    from worker.kernels.serving import paged_attention, prompt_attention

    if settings.sinks_H is not None:
        raise NotImplementedError("The kernels have no attention sinks.")
    kernel_settings = paged_attention.AttentionSettings(
        settings.scale, settings.window or 0, settings.softcap or 0.0
    )
    cache = (layer.keys_PSGD, layer.values_PSGD)
    paged_attention.store(key_GND, value_GND, *cache, step.block_tables_RP, step.rows_N, step.positions_N)
    if step.tiles_M4 is not None:
        return prompt_attention.attend(
            query_HND, *cache, step.block_tables_RP, step.tiles_M4, kernel_settings
        )
    return paged_attention.decode(query_HND, *cache, step.block_tables_RP, step.positions_N, kernel_settings)


def _store(key_GND: torch.Tensor, value_GND: torch.Tensor, layer: LayerCache, step: Step) -> None:
    block_tokens = BLOCK_TOKENS
    blocks_N = step.block_tables_RP[step.rows_N, step.positions_N // block_tokens]
    places_N = blocks_N * block_tokens + step.positions_N % block_tokens
    layer.keys_PSGD.flatten(0, 1)[places_N] = key_GND.transpose(0, 1)
    layer.values_PSGD.flatten(0, 1)[places_N] = value_GND.transpose(0, 1)


def _decode(query_HND: torch.Tensor, layer: LayerCache, step: Step, settings: LayerSettings) -> torch.Tensor:
    """One token per row. The query heads of a key head act as its queries, so that no key is repeated."""
    heads, count, dimension = query_HND.shape
    tables = step.block_tables_RP[:count, : block_count(step.key_count)]
    keys_NGLD = layer.keys_PSGD[tables].flatten(1, 2).transpose(1, 2)
    values_NGLD = layer.values_PSGD[tables].flatten(1, 2).transpose(1, 2)
    grouped = query_HND.transpose(0, 1).reshape(count, keys_NGLD.shape[1], -1, dimension)
    sinks = None if settings.sinks_H is None else settings.sinks_H.view(1, *grouped.shape[1:3], 1)
    out = _attention(grouped, keys_NGLD, values_NGLD, step.decode_mask(settings.window), settings, sinks)
    return out.reshape(count, heads, dimension)


def _prefill(query_HND: torch.Tensor, layer: LayerCache, step: Step, settings: LayerSettings) -> torch.Tensor:
    """Chunks of prompts, one row after another."""
    groups = len(query_HND) // layer.keys_PSGD.shape[2]
    sinks = None if settings.sinks_H is None else settings.sinks_H.view(1, -1, 1, 1)
    attended, first = [], 0
    for chunk in step.chunks:
        blocks = step.block_tables_RP[chunk.row, : block_count(chunk.end)]
        keys_GLD = layer.keys_PSGD[blocks].flatten(0, 1)[: chunk.end].transpose(0, 1)
        values_GLD = layer.values_PSGD[blocks].flatten(0, 1)[: chunk.end].transpose(0, 1)
        positions = torch.arange(chunk.start, chunk.end, device=query_HND.device)
        mask = _visible(positions, torch.arange(chunk.end, device=query_HND.device), settings.window)
        out_HND = _attention(
            query_HND[None, :, first : first + chunk.count],
            _repeat_kv(keys_GLD, groups)[None],
            _repeat_kv(values_GLD, groups)[None],
            mask,
            settings,
            sinks,
        )
        attended.append(out_HND[0].transpose(0, 1))
        first += chunk.count
    return torch.cat(attended)


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    settings: LayerSettings,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention in torch over [batch, heads, tokens, D]. `sinks`: as the scores of one more key."""
    if settings.softcap is None and sinks is None:
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=settings.scale
        )
    scores = query @ keys.transpose(-2, -1) * settings.scale
    if settings.softcap is not None:
        # Soft cap of Gemma 2: tanh limits the scores before the softmax.
        scores = torch.tanh(scores / settings.softcap) * settings.softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    # Rounded as transformers rounds them: 16 bits of a weight decide which experts a later layer chooses.
    scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], -1)
    weights = (scores - scores.amax(-1, keepdim=True)).softmax(-1)
    return weights[..., : keys.shape[-2]] @ values


def _visible(positions_N: torch.Tensor, keys_L: torch.Tensor, window: int | None) -> torch.Tensor:
    mask_NL = keys_L <= positions_N[:, None]
    if window is not None:
        mask_NL = mask_NL & (keys_L > positions_N[:, None] - window)
    return mask_NL


def _repeat_kv(states_GLD: torch.Tensor, groups: int) -> torch.Tensor:
    return states_GLD.repeat_interleave(groups, dim=0) if groups > 1 else states_GLD


AttentionInterface.register(NAME, attend)
