"""The kernel for rotary position embeddings against transformers' own function."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from worker.kernels import rotary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_rotation_is_that_of_llama():
    query, key = torch.randn(1, 5, 4, 24, device=DEVICE), torch.randn(1, 5, 2, 24, device=DEVICE)
    angles = torch.randn(1, 5, 12, device=DEVICE).repeat(1, 1, 2)
    cosine, sine = angles.cos(), angles.sin()
    expected = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cosine, sine)

    rotated = rotary.rotate(
        query.transpose(1, 2)[0], key.transpose(1, 2)[0], cosine[0].contiguous(), sine[0].contiguous()
    )

    torch.testing.assert_close(rotated, (expected[0][0], expected[1][0]))
