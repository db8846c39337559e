"""The heads of a decode step: adapters, norms, rotation and the cache, against the same in torch."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.worker.kernels.pending_loras import make_update
from worker.kernels.serving import decode_heads
from worker.kernels.serving.decode_heads import CachePlaces, HeadNorms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, KEY_HEADS, WIDTH, BLOCK_TOKENS = 4, 2, 24, 4
EPSILON = 1e-3


@pytest.mark.parametrize(("count", "has_adapters"), [(1, False), (1, True), (3, True), (18, False)])
@pytest.mark.parametrize("norm", [None, "Llama's", "Gemma's"])
def test_heads_are_those_of_torch(count, has_adapters, norm):
    torch.manual_seed(0)
    widths = [heads * WIDTH for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    # Rows lie apart, as a product with the rows of adapters leaves them.
    qkv_NO = torch.randn(count, sum(widths) + 5, device=DEVICE)[:, :-5]
    update, added_NO = make_update(count, widths, DEVICE)
    half_ND = torch.randn(count, WIDTH // 2, device=DEVICE)
    angles_ND = torch.cat([half_ND, half_ND], 1)
    weights = torch.randn(2, WIDTH, device=DEVICE)
    norms = HeadNorms(*weights, EPSILON, adds_one=norm == "Gemma's") if norm else None
    places = CachePlaces(
        *torch.full((2, 3 * count + 1, BLOCK_TOKENS, KEY_HEADS, WIDTH), torch.nan, device=DEVICE),
        (torch.randperm(3 * count, device=DEVICE).int() + 1).view(count, 3),
        torch.arange(count, device=DEVICE).flip(0),
        torch.arange(count, device=DEVICE) % (3 * BLOCK_TOKENS),
    )

    query_HND = decode_heads.prepare(
        qkv_NO, update if has_adapters else None, (angles_ND.cos(), angles_ND.sin()), places, norms
    )

    whole_NO = qkv_NO + added_NO if has_adapters else qkv_NO
    q_NHD, k_NGD, v_NGD = (part.unflatten(1, (-1, WIDTH)) for part in whole_NO.split(widths, 1))
    if norms:
        q_NHD, k_NGD = (
            functional.rms_norm(heads, (WIDTH,), weight + norms.adds_one, EPSILON)
            for heads, weight in zip((q_NHD, k_NGD), weights, strict=True)
        )
    q_1HND, k_1GND = (heads.transpose(0, 1)[None] for heads in (q_NHD, k_NGD))
    q_1HND, k_1GND = apply_rotary_pos_emb(q_1HND, k_1GND, angles_ND.cos()[None], angles_ND.sin()[None])
    torch.testing.assert_close(query_HND, q_1HND[0], atol=1e-4, rtol=1e-4)
    blocks_N = places.block_tables_RP[places.rows_N, places.positions_N // BLOCK_TOKENS]
    at = (blocks_N, places.positions_N % BLOCK_TOKENS)
    torch.testing.assert_close(places.keys_PSGD[at], k_1GND[0].transpose(0, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(places.values_PSGD[at], v_NGD, atol=1e-4, rtol=1e-4)
    # Nothing else was written.
    assert int(places.keys_PSGD.isnan().logical_not().sum()) == count * KEY_HEADS * WIDTH
