"""Compiles attention as a job does ahead, then as its layers launch it. Prints what is compiled only then.

python -m tests.worker.kernels.compile_ahead 90      compute capability 9.0
"""

import os
import sys
from pathlib import Path

import torch
import triton
from triton.runtime.jit import JITFunction

from tests.worker.kernels.compile_all import AbsentGpu, compile_only
from worker.kernels import varlen_attention

HEADS, KEY_HEADS, WIDTH, PADDING = 8, 2, 128, 64


def find_compiled() -> set[str]:
    return {path.name for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")}


def attend(window: int | None) -> None:
    """As in explicit layers: q, k and v side by side, and padding behind them."""
    tokens, widths = 300, [HEADS * WIDTH, KEY_HEADS * WIDTH, KEY_HEADS * WIDTH, PADDING]
    qkv_TO = torch.zeros(tokens, sum(widths), dtype=torch.bfloat16, requires_grad=True)
    heads = [part.view(tokens, -1, WIDTH) for part in qkv_TO.split(widths, dim=1)[:3]]
    starts = torch.tensor([0, 100, tokens], dtype=torch.int32)
    varlen_attention.attend(*heads, starts, scale=0.1, window=window).sum().backward()


if __name__ == "__main__":
    triton.runtime.driver.set_active(AbsentGpu(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_only
    for window in (None, 64):
        for call in varlen_attention.compilations(
            HEADS, KEY_HEADS, WIDTH, window=window, dtype=torch.bfloat16, device=torch.device("cpu")
        ):
            call()
        ahead = find_compiled()
        attend(window)
        print(*sorted(find_compiled() - ahead))
    print(len(ahead))
