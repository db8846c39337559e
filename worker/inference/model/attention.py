"""Attention over the paged cache, in the place where transformers calls an attention function by name.

The model's own code is left as it is and is given no cache: this function stores keys and values itself. It
knows each layer's sliding window and soft cap, and refuses what it does not know. All tokens of a step come
in one line, whoever they belong to. On a GPU the kernels do the work, elsewhere plain torch.
Shape letters: N tokens of this step, R rows, L keys, H query heads, G key heads, D dimension; B is always 1.
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
class Piece:
    """Tokens of one row that stand one after another, from this position on."""

    row: int
    start: int
    count: int

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + self.count


@dataclass
class Step:
    """Where the tokens of one forward pass stand, and what they may see."""

    cache: KVCache
    block_tables_RP: torch.Tensor
    rows_N: torch.Tensor
    positions_N: torch.Tensor
    # Pieces of prompts, one after another; empty where token n is the next one of row n.
    pieces: list[Piece] = field(default_factory=list)
    # Keys of the longest row. The kernels don't ask for it: they read the positions themselves.
    key_count: int = 0
    uses_kernels: bool = False
    tiles_M4: torch.Tensor | None = None
    windows: dict[int, int | None] = field(default_factory=dict)
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def reads_prompts(self) -> bool:
        """Whether these are pieces of prompts."""
        return bool(self.pieces) or self.tiles_M4 is not None

    def use_kernels(self) -> None:
        """Let the kernels do it."""
        self.uses_kernels = True
        if self.pieces:
            self.tiles_M4 = on_device(prompt_tiles(self.pieces), self.positions_N.device)

    def decode_mask(self, window: int | None) -> torch.Tensor:
        """Shape [N, 1, 1, L], true where a token may look."""
        if window not in self._masks:
            length = block_count(self.key_count) * BLOCK_TOKENS
            keys_L = torch.arange(length, device=self.positions_N.device)
            self._masks[window] = _visible(self.positions_N, keys_L, window)[:, None, None]
        return self._masks[window]


def prompt_tiles(pieces: list[Piece]) -> torch.Tensor:
    """What the kernels need of pieces of prompts, on the host: int32 [M, 4]."""
    from worker.kernels import paged_attention

    tiles = paged_attention.tiles([(piece.row, piece.start, piece.count) for piece in pieces])
    return torch.tensor(tiles, dtype=torch.int32)


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
    step: Step | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer; answers [B, N, H, D]."""
    if step is None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise ModelUnsupported("The base model's attention is of a kind that the engine does not know.")
    index = module.layer_idx
    assert isinstance(index, int)
    step.windows[index] = sliding_window
    layer = step.cache.layer(index, key_BGND, value_BGND)
    scale = query_BHND.shape[3] ** -0.5 if scaling is None else scaling
    look = _Look(scale, sliding_window, softcap)
    if step.uses_kernels:
        return _with_kernels(query_BHND[0], key_BGND[0], value_BGND[0], layer, step, look)[None], None
    _store(key_BGND[0], value_BGND[0], layer, step)
    attended = _read(query_BHND, layer, step, look) if step.pieces else _decode(query_BHND, layer, step, look)
    return attended, None


@dataclass(frozen=True)
class _Look:
    """How a layer looks at keys."""

    scale: float
    window: int | None
    softcap: float | None


def _with_kernels(
    query_HND: torch.Tensor,
    key_GND: torch.Tensor,
    value_GND: torch.Tensor,
    layer: LayerCache,
    step: Step,
    look: _Look,
) -> torch.Tensor:
    # Triton is not there on a machine without a GPU.
    from worker.kernels import paged_attention

    kernel_look = paged_attention.Look(look.scale, look.window or 0, look.softcap or 0.0)
    cache = (layer.keys_PSGD, layer.values_PSGD)
    paged_attention.store(key_GND, value_GND, *cache, step.block_tables_RP, step.rows_N, step.positions_N)
    if step.tiles_M4 is not None:
        return paged_attention.prefill(query_HND, *cache, step.block_tables_RP, step.tiles_M4, kernel_look)
    return paged_attention.decode(query_HND, *cache, step.block_tables_RP, step.positions_N, kernel_look)


def _store(key_GND: torch.Tensor, value_GND: torch.Tensor, layer: LayerCache, step: Step) -> None:
    block_tokens = BLOCK_TOKENS
    blocks_N = step.block_tables_RP[step.rows_N, step.positions_N // block_tokens]
    places_N = blocks_N * block_tokens + step.positions_N % block_tokens
    layer.keys_PSGD.flatten(0, 1)[places_N] = key_GND.transpose(0, 1)
    layer.values_PSGD.flatten(0, 1)[places_N] = value_GND.transpose(0, 1)


def _decode(query_BHND: torch.Tensor, layer: LayerCache, step: Step, look: _Look) -> torch.Tensor:
    """One token a row: the query heads of a key head take the place of tokens, so no key is copied twice."""
    heads, count, dimension = query_BHND.shape[1:]
    tables = step.block_tables_RP[:count, : block_count(step.key_count)]
    keys_NGLD = layer.keys_PSGD[tables].flatten(1, 2).transpose(1, 2)
    values_NGLD = layer.values_PSGD[tables].flatten(1, 2).transpose(1, 2)
    grouped = query_BHND[0].transpose(0, 1).reshape(count, keys_NGLD.shape[1], -1, dimension)
    out = _attention(grouped, keys_NGLD, values_NGLD, step.decode_mask(look.window), look)
    return out.reshape(1, count, heads, dimension)


def _read(query_BHND: torch.Tensor, layer: LayerCache, step: Step, look: _Look) -> torch.Tensor:
    """Pieces of prompts, one row after another."""
    groups = query_BHND.shape[1] // layer.keys_PSGD.shape[2]
    attended, first = [], 0
    for piece in step.pieces:
        blocks = step.block_tables_RP[piece.row, : block_count(piece.end)]
        keys_GLD = layer.keys_PSGD[blocks].flatten(0, 1)[: piece.end].transpose(0, 1)
        values_GLD = layer.values_PSGD[blocks].flatten(0, 1)[: piece.end].transpose(0, 1)
        positions = torch.arange(piece.start, piece.end, device=query_BHND.device)
        mask = _visible(positions, torch.arange(piece.end, device=query_BHND.device), look.window)
        query_HND = query_BHND[0, :, first : first + piece.count]
        out_HND = _attention(
            query_HND[None],
            _repeated(keys_GLD, groups)[None],
            _repeated(values_GLD, groups)[None],
            mask,
            look,
        )
        attended.append(out_HND[0].transpose(0, 1))
        first += piece.count
    return torch.cat(attended)[None]


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, look: _Look
) -> torch.Tensor:
    """Plain attention over [batch, heads, tokens, D]."""
    if look.softcap is None:
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=look.scale)
    # Scores squeezed by tanh before the softmax, as in Gemma 2.
    scores = torch.tanh(query @ keys.transpose(-2, -1) * look.scale / look.softcap) * look.softcap
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ values


def _visible(positions_N: torch.Tensor, keys_L: torch.Tensor, window: int | None) -> torch.Tensor:
    mask_NL = keys_L <= positions_N[:, None]
    if window is not None:
        mask_NL = mask_NL & (keys_L > positions_N[:, None] - window)
    return mask_NL


def _repeated(states_GLD: torch.Tensor, groups: int) -> torch.Tensor:
    return states_GLD.repeat_interleave(groups, dim=0) if groups > 1 else states_GLD


AttentionInterface.register(NAME, attend)
