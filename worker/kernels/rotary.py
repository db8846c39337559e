"""Rotary position embedding (Su et al. 2021) of the two halves of each head, as in Llama, in one kernel.

Shape letters: N tokens, H query heads, G key heads, D dimension of a head.
"""

import torch
import triton
import triton.language as tl

_HEADS_PER_PROGRAM = 16


def rotate(
    query_HND: torch.Tensor, key_GND: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rotated queries [H, N, D] and keys [G, N, D], views of tensors [N, H, D] and [N, G, D]."""
    heads, count, dimension = query_HND.shape
    key_heads = key_GND.shape[0]
    new_query_NHD = query_HND.new_empty(count, heads, dimension)
    new_key_NGD = query_HND.new_empty(count, key_heads, dimension)
    _rotate_kernel[(count, triton.cdiv(heads + key_heads, _HEADS_PER_PROGRAM))](
        query_HND,
        key_GND,
        cosine_ND,
        sine_ND,
        new_query_NHD,
        new_key_NGD,
        query_HND.stride(0),
        query_HND.stride(1),
        key_GND.stride(0),
        key_GND.stride(1),
        HEADS=heads,
        KEY_HEADS=key_heads,
        HALF=dimension // 2,
        BLOCK=triton.next_power_of_2(dimension // 2),
        HEADS_PER_PROGRAM=_HEADS_PER_PROGRAM,
        num_warps=4,
    )
    return new_query_NHD.transpose(0, 1), new_key_NGD.transpose(0, 1)


@triton.jit
def _rotate_kernel(
    query,
    key,
    cosine,
    sine,
    new_query,
    new_key,
    query_head_stride,
    query_token_stride,
    key_head_stride,
    key_token_stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = (tl.program_id(1) * HEADS_PER_PROGRAM + tl.arange(0, HEADS_PER_PROGRAM))[:, None]
    each = tl.arange(0, BLOCK)[None, :]
    inside = each < HALF
    angles = token * 2 * HALF + each
    cosine_low = tl.load(cosine + angles, mask=inside, other=0.0).to(tl.float32)
    cosine_high = tl.load(cosine + angles + HALF, mask=inside, other=0.0).to(tl.float32)
    sine_low = tl.load(sine + angles, mask=inside, other=0.0).to(tl.float32)
    sine_high = tl.load(sine + angles + HALF, mask=inside, other=0.0).to(tl.float32)
    is_query, key_heads = heads < HEADS, heads - HEADS
    is_key = (heads >= HEADS) & (key_heads < KEY_HEADS)
    read_query = query + heads * query_head_stride + token * query_token_stride + each
    read_key = key + key_heads * key_head_stride + token * key_token_stride + each
    low = tl.load(read_query, mask=is_query & inside, other=0.0).to(tl.float32)
    low += tl.load(read_key, mask=is_key & inside, other=0.0).to(tl.float32)
    high = tl.load(read_query + HALF, mask=is_query & inside, other=0.0).to(tl.float32)
    high += tl.load(read_key + HALF, mask=is_key & inside, other=0.0).to(tl.float32)
    new_low = (low * cosine_low - high * sine_low).to(new_query.dtype.element_ty)
    new_high = (high * cosine_high + low * sine_high).to(new_query.dtype.element_ty)
    write_query = new_query + (token * HEADS + heads) * 2 * HALF + each
    write_key = new_key + (token * KEY_HEADS + key_heads) * 2 * HALF + each
    tl.store(write_query, new_low, mask=is_query & inside)
    tl.store(write_query + HALF, new_high, mask=is_query & inside)
    tl.store(write_key, new_low, mask=is_key & inside)
    tl.store(write_key + HALF, new_high, mask=is_key & inside)
