"""llama.cpp's own rounding of rows to the types of GGUF, from the library inside the package `xllamacpp`.

The `gguf` package writes the simple types and only reads K-quants. No package on PyPI has both llama.cpp's
`llama_model_quantize` and a wheel that loads on Debian 12 (docs/decisions/0056); `ggml_quantize_chunk`, which
that function calls for each tensor, is exported by this one.
Source: https://github.com/ggml-org/llama.cpp, ggml/src/ggml-quants.c. R: rows. N: numbers in a row.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import cast

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType

from app.core.errors.exports import QuantizerMissing

_PACKAGE = "xllamacpp"
_FUNCTION = "ggml_quantize_chunk"
_HINT = (
    "On the worker: pip install 'tunesmith[llama-cpp]' (or pip install xllamacpp), then retry. "
    "Types without K need nothing more: q8_0, q5_1, q5_0, q4_1, q4_0, f16, bf16."
)
_ARGUMENTS = [
    ctypes.c_int,  # the type
    *(ctypes.c_void_p, ctypes.c_void_p),  # the numbers, the result
    *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),  # the first number, rows, numbers in a row
    ctypes.c_void_p,  # the importance of each number of a row, or null
]
Quantize = Callable[..., int]


def check_quantizer() -> None:
    """Raise QuantizerMissing where llama.cpp's quantizer can't be loaded."""
    _load()


def quantize(
    numbers_RN: npt.NDArray[np.float32],
    type: GGMLQuantizationType,
    importance_N: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """The rows' bytes, shaped (R, bytes of a row). Raises QuantizerMissing.

    With `importance_N` the error of a number counts in proportion to its importance. torch's number of
    threads share the rows; the interpreter's lock is released meanwhile.
    """
    function = _load()
    rows, length = numbers_RN.shape
    block, size = gguf.GGML_QUANT_SIZES[type]
    found = np.empty((rows, length // block * size), np.uint8)
    numbers_RN = np.ascontiguousarray(numbers_RN, np.float32)
    weights = None if importance_N is None else np.ascontiguousarray(importance_N, np.float32)

    def run(part: npt.NDArray[np.int64]) -> int:
        first, count = int(part[0]), len(part)
        place = None if weights is None else weights.ctypes.data
        return function(
            int(type), numbers_RN[first:].ctypes.data, found[first:].ctypes.data, 0, count, length, place
        )

    parts = [part for part in np.array_split(np.arange(rows), torch.get_num_threads()) if len(part)]
    with ThreadPoolExecutor(len(parts)) as pool:
        written = sum(pool.map(run, parts))
    assert written == found.size, f"the quantizer wrote {written} bytes of {found.size}"
    return found


@cache
def _load() -> Quantize:
    package = find_spec(_PACKAGE)
    if package is None:
        raise QuantizerMissing("K-quants need llama.cpp's quantizer, which is not installed.", hint=_HINT)
    library = PathFinder.find_spec(_PACKAGE, package.submodule_search_locations)
    try:
        assert library is not None and library.origin is not None  # noqa: PT018
        function = getattr(ctypes.CDLL(library.origin), _FUNCTION)
    except (AssertionError, OSError, AttributeError) as error:
        raise QuantizerMissing(
            f"The installed {_PACKAGE} has no quantizer that can be used: {error}", hint=_HINT
        ) from error
    function.argtypes, function.restype = _ARGUMENTS, ctypes.c_size_t
    return cast(Quantize, function)
