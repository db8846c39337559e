"""llama.cpp's quantizer by way of xllamacpp: its bytes, importance, threads, and a worker without it."""

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from app.core.errors.exports import QuantizerMissing
from worker.exports.gguf import quantizer

NUMBERS = np.random.default_rng(3).normal(size=(7, 512)).astype(np.float32)


@pytest.fixture
def installed() -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: its quantizer is NOT tested")


@pytest.fixture
def unloaded() -> Iterator[None]:
    quantizer._load.cache_clear()
    yield
    quantizer._load.cache_clear()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("type", [Type.Q8_0, Type.Q5_1, Type.Q5_0, Type.Q4_1, Type.Q4_0])
def test_simple_types_have_the_bytes_of_the_gguf_package(type: Type) -> None:
    np.testing.assert_array_equal(quantizer.quantize(NUMBERS, type), gguf.quantize(NUMBERS, type))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("type", [Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.Q3_K, Type.IQ4_XS, Type.IQ4_NL])
def test_an_importance_matrix_lowers_the_error_of_important_numbers(type: Type) -> None:
    importance = np.random.default_rng(4).exponential(size=512).astype(np.float32) ** 3

    plain, weighted = (quantizer.quantize(NUMBERS, type, given) for given in (None, importance))

    errors = [
        (importance * (gguf.dequantize(found, type) - NUMBERS) ** 2).mean() for found in (plain, weighted)
    ]
    assert errors[1] < errors[0]


@pytest.mark.usefixtures("installed")
def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = quantizer.quantize(NUMBERS, Type.Q4_K)
    for threads in (3, 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        np.testing.assert_array_equal(quantizer.quantize(NUMBERS, Type.Q4_K), one)


@pytest.mark.usefixtures("unloaded")
def test_a_worker_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "_PACKAGE", "no_such_package")

    with pytest.raises(QuantizerMissing, match="not installed") as raised:
        quantizer.check_quantizer()

    assert "pip install 'tunesmith[llama-cpp]'" in (raised.value.hint or "")


@pytest.mark.usefixtures("installed", "unloaded")
def test_a_package_whose_library_lacks_the_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "_FUNCTION", "no_such_function")

    with pytest.raises(QuantizerMissing, match="no_such_function"):
        quantizer.check_quantizer()
