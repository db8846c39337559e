"""The small kernels against transformers' own functions."""

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from worker.kernels import elementwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_rms_norm_is_that_of_llama():
    norm = LlamaRMSNorm(72, eps=1e-5).to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(1, 5, 72, device=DEVICE)

    torch.testing.assert_close(elementwise.rms_norm(x, norm.weight, 1e-5), norm(x))


def test_rotation_is_that_of_llama():
    query, key = torch.randn(1, 5, 4, 24, device=DEVICE), torch.randn(1, 5, 2, 24, device=DEVICE)
    angles = torch.randn(1, 5, 12, device=DEVICE).repeat(1, 1, 2)
    cosine, sine = angles.cos(), angles.sin()
    expected = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cosine, sine)

    rotated = elementwise.rotate(
        query.transpose(1, 2)[0], key.transpose(1, 2)[0], cosine[0].contiguous(), sine[0].contiguous()
    )

    torch.testing.assert_close(rotated, (expected[0][0], expected[1][0]))


def test_swiglu_of_rows_with_a_stride():
    both = torch.randn(3, 2 * 40, device=DEVICE)
    gate, up = both.split(40, -1)

    torch.testing.assert_close(elementwise.silu_times(gate, up), torch.nn.functional.silu(gate) * up)
