"""Checks bitsandbytes' CPU kernel for 4-bit weights and replaces its result where that is wrong.

Whatever reads a 4-bit weight on a CPU calls the operator `bitsandbytes::dequantize_4bit`: forward and
backward of `Linear4bit`, `functional.dequantize_4bit`, PEFT's merge, transformers' `dequantize()`. Its CPU
kernel is compared with the definition of the format, code table times absmax, once for each row width. This
module does not know where weights come from. It does not check `gemv_4bit`, which multiplies by weights
repacked for AVX512-BF16: `worker/models/base_model.py` turns the repacking off. See docs/decisions/0024.
"""

import logging
import math
import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import bitsandbytes
import torch
from bitsandbytes.functional import get_4bit_type
from bitsandbytes.nn import Params4bit
from torch import nn

BLOCK_SIZE = 64
_OPERATOR = "dequantize_4bit"
# A wrong scale or code changes a weight by more than this; rounding to bfloat16 changes it by up to 0.4%.
_TOLERANCE = 0.01
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_log = logging.getLogger(__name__)


class BlockLayout(NamedTuple):
    """How a 4-bit weight is stored, as far as the kernel's result may depend on it."""

    width: int  # numbers in a row: the inputs of a linear layer
    quant_type: str  # "nf4" or "fp4"
    block_size: int = BLOCK_SIZE  # consecutive numbers, across rows, with one scale

    @property
    def whole_blocks(self) -> "BlockLayout":
        """The same storage read as rows of one block each."""
        return self._replace(width=self.block_size)


def check_model(model: nn.Module) -> None:
    """Check the kernel for the 4-bit weights that `model` has on the CPU. See `check`."""
    states = [
        parameter.quant_state
        for parameter in model.parameters()
        if isinstance(parameter, Params4bit) and parameter.device.type == "cpu"
    ]
    check(BlockLayout(state.shape[-1], state.quant_type, state.blocksize) for state in states)


def check(layouts: Iterable[BlockLayout]) -> None:
    """Compare the CPU kernel with `by_table` for each layout that was not compared before in this process.

    For layouts that it gets wrong, the operator computes another way from now on, and one line in the log
    names them. For all other layouts the operator calls its kernel as before. `undo()` restores it for all.
    """
    global _library
    new = set(layouts) - _checked
    if not new:
        return
    with _lock:
        wrong = {layout for layout in sorted(new - _checked) if not _is_right(layout)}
        if wrong:
            others = {layout.whole_blocks for layout in wrong} - _checked
            _wrong.update(wrong, (layout for layout in others if not _is_right(layout)))
            _library = _library or _override()
            _log.warning(
                "bitsandbytes %s dequantizes 4-bit weights wrongly on this processor (%s) where a row has %s "
                "numbers: another way is used for them.",
                bitsandbytes.__version__,
                torch.backends.cpu.get_cpu_capability(),
                ", ".join(map(str, sorted({layout.width for layout in wrong}))),
            )
        _checked.update(new)


def undo() -> None:
    """Give the operator its own kernel back and forget what was checked."""
    global _library
    with _lock:
        if _library is not None:
            _library._destroy()
        _library = None
        _wrong.clear()
        _checked.clear()


def by_table(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The weight of this shape by the definition of the format: two numbers to a byte, the first in the high
    half, each an index into the code table, times the scale of its block.

    Parameters are those of the operator. Computed in float32. Takes several bytes for each number.
    """
    count = math.prod(shape)
    pairs = packed.reshape(-1).view(torch.uint8).int()
    codes = get_4bit_type(quant_type, device="cpu")[torch.stack([pairs >> 4, pairs & 15], 1).view(-1)[:count]]
    scales = absmax.float().repeat_interleave(blocksize)[:count]
    return (codes * scales).view(*shape).to(dtype)


# The registration of an operator's kernel holds for the process, and so does this.
_lock = threading.Lock()
_library: torch.library.Library | None = None
_checked: set[BlockLayout] = set()
_wrong: set[BlockLayout] = set()


def _is_right(layout: BlockLayout) -> bool:
    """Whether the kernel agrees with the table, on random numbers, in every type that a weight may have."""
    width, quant_type, block_size = layout
    # Blocks begin at each place of a row at which they ever do, and the last one is cut where rows cut one.
    shape = (2 * block_size // math.gcd(width, block_size) + 1, width)
    random = torch.Generator().manual_seed(0)
    count = math.prod(shape)
    packed = torch.randint(256, (-(-count // 2), 1), dtype=torch.uint8, generator=random)
    absmax = torch.rand(-(-count // block_size), generator=random) + 0.5
    for dtype in _DTYPES:
        arguments = (packed, absmax, block_size, quant_type, shape, dtype)
        found = torch.ops.bitsandbytes.dequantize_4bit.default(*arguments).float()
        expected = by_table(*arguments).float()
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=1e-5):
            return False
    return True


def _override() -> torch.library.Library:
    """Register a CPU kernel of the operator that stands before the one registered so far.

    Seen with bitsandbytes 0.50.2 and torch 2.13. Ends with `_destroy()` of what is returned. Without
    `allow_override`, torch 2.11 refuses it: bitsandbytes' own kernel is registered from Python, too.
    """
    kernel = torch.library.get_kernel(f"bitsandbytes::{_OPERATOR}", "CPU")

    def dequantize(
        keys: torch.DispatchKeySet,
        packed: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        layout = BlockLayout(shape[-1], quant_type, blocksize)
        if layout not in _wrong:
            return kernel.call_boxed(keys, packed, absmax, blocksize, quant_type, shape, dtype)
        if layout.whole_blocks in _wrong:
            return by_table(packed, absmax, blocksize, quant_type, shape, dtype)
        # The same bytes as rows of one block each, the last one filled up.
        count = math.prod(shape)
        rows = -(-count // blocksize)
        pairs = packed.reshape(-1).view(torch.uint8)
        padded = nn.functional.pad(pairs, (0, rows * blocksize // 2 - len(pairs)))
        weight = kernel.call_boxed(keys, padded, absmax, blocksize, quant_type, (rows, blocksize), dtype)
        return weight.view(-1)[:count].view(*shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl(_OPERATOR, dequantize, "CPU", with_keyset=True, allow_override=True)
    return library
