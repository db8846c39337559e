"""A CPU kernel that dequantizes 4-bit weights wrongly is found and not used; a right one is called as before.

The wrong kernel is a stand-in, so that this is tested on any processor.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM

from app.core.specs.job import QuantizationSpec
from worker.exports.merged.adapter_weights import AdapterWeights
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.merge import Merger, read_shape
from worker.models import cpu_dequantize
from worker.models.base_model import load_for_serving, load_model, quantization_config
from worker.models.cpu_dequantize import BlockLayout, by_table
from worker.models.device import Device

CPU = Device(kind="cpu", name="CPU", memory_bytes=1 << 34, supports_bf16=False, torch_version="2.13.0")
WRONG, ALSO_WRONG, RIGHT = 96, 160, 128
KINDS = ["nf4", "fp4"]
SCHEMA = (
    "bitsandbytes::dequantize_4bit(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, "
    "ScalarType dtype) -> Tensor"
)


class Kernel:
    """The operator's CPU kernel: 10% too large where rows are not whole blocks, or everywhere."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.is_always_wrong = False

    def __call__(
        self,
        packed: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        self.shapes.append(tuple(shape))
        weight = by_table(packed, absmax, blocksize, quant_type, shape, dtype)
        return weight * 1.1 if self.is_always_wrong or shape[-1] % blocksize else weight


@contextmanager
def registered(kernel: Kernel) -> Iterator[None]:
    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on the first kernel in the place of another
        library.impl("dequantize_4bit", kernel, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    cpu_dequantize.undo()
    kernel = Kernel()
    with registered(kernel):
        yield kernel
        cpu_dequantize.undo()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model with weights of two widths for which the kernel is wrong."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WRONG,
        intermediate_size=ALSO_WRONG,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantize(rows: int, columns: int, kind: str = "nf4") -> tuple[torch.Tensor, QuantState]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight, blocksize=64, quant_type=kind)
    return packed, state


def expected(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    return by_table(packed, state.absmax, 64, state.quant_type, state.shape, state.dtype)


def make_layer(columns: int) -> Linear4bit:
    layer = Linear4bit(columns, 32, bias=False, compress_statistics=False, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = False
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [16, 32, 48, 50, 64, 72, 80, 96, 128, 160, 576])
def test_on_this_processor_every_checked_width_is_right(columns: int, kind: str) -> None:
    packed, state = quantize(129, columns, kind)

    cpu_dequantize.check([BlockLayout(columns, kind)])

    torch.testing.assert_close(dequantize_4bit(packed, state), expected(packed, state), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_always_wrong", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, WRONG), (7, 50), (5, 3, WRONG)], ids=str)
def test_a_width_whose_kernel_is_wrong_is_computed_without_it(
    shape: tuple[int, ...], kind: str, is_always_wrong: bool, kernel: Kernel
) -> None:
    kernel.is_always_wrong = is_always_wrong
    packed, state = quantize(math.prod(shape[:-1]), shape[-1], kind)
    state.shape = torch.Size(shape)
    assert not torch.equal(dequantize_4bit(packed, state), expected(packed, state))

    cpu_dequantize.check([BlockLayout(shape[-1], kind)])

    assert torch.equal(dequantize_4bit(packed, state), expected(packed, state))


def test_packed_weights_of_another_storage_type_are_read_as_bytes(kernel: Kernel) -> None:
    weight = torch.randn(32, WRONG)
    packed, state = quantize_4bit(weight, quant_type="nf4", quant_storage=torch.bfloat16)

    cpu_dequantize.check([BlockLayout(WRONG, "nf4")])

    assert torch.equal(dequantize_4bit(packed, state), expected(packed, state))


def test_a_layer_computes_forward_and_backward_with_the_right_weights(kernel: Kernel) -> None:
    """Without the check it computes with the wrong ones: it reads its weight through this operator."""
    layer = make_layer(WRONG)
    x = torch.randn(4, WRONG, requires_grad=True)
    right = expected(layer.weight.data, layer.weight.quant_state)
    assert not torch.allclose(layer(x), linear(x, right), rtol=0.05)

    cpu_dequantize.check_model(layer)

    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, linear(x, right))
    torch.testing.assert_close(layer(x.detach()), linear(x.detach(), right))
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ right)


def test_where_all_widths_are_right_the_operator_is_left_alone(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    cpu_dequantize.check_model(make_layer(RIGHT))
    kernel.shapes.clear()

    dequantize_4bit(*quantize(32, RIGHT))

    assert kernel.shapes == [(32, RIGHT)]
    assert cpu_dequantize._library is None
    assert not caplog.records


def test_beside_a_wrong_width_a_right_one_keeps_its_kernel(kernel: Kernel) -> None:
    cpu_dequantize.check([BlockLayout(WRONG, "nf4"), BlockLayout(RIGHT, "nf4")])
    kernel.shapes.clear()

    dequantize_4bit(*quantize(32, RIGHT))

    assert kernel.shapes == [(32, RIGHT)]


def test_a_width_is_checked_once(kernel: Kernel) -> None:
    cpu_dequantize.check([BlockLayout(WRONG, "nf4"), BlockLayout(RIGHT, "nf4")])
    kernel.shapes.clear()

    cpu_dequantize.check([BlockLayout(RIGHT, "nf4"), BlockLayout(WRONG, "nf4")])

    assert not kernel.shapes


def test_undone_the_operator_has_its_own_kernel_again(kernel: Kernel) -> None:
    packed, state = quantize(32, WRONG)
    before = dequantize_4bit(packed, state)
    cpu_dequantize.check([BlockLayout(WRONG, "nf4")])

    cpu_dequantize.undo()

    assert torch.equal(dequantize_4bit(packed, state), before)


def load_to_train(base: Path, quantization: QuantizationSpec) -> dict[str, torch.Tensor]:
    return load_model(base, quantization, CPU).dequantize(dtype=torch.float32).state_dict()


def load_packed_to_serve(base: Path, quantization: QuantizationSpec) -> dict[str, torch.Tensor]:
    model = load_for_serving(base, quantization, CPU, keeps_4bit=True)
    return model.dequantize(dtype=torch.float32).state_dict()


def load_to_serve(base: Path, quantization: QuantizationSpec) -> dict[str, torch.Tensor]:
    return load_for_serving(base, quantization, CPU).state_dict()


def merge_nothing(base: Path, quantization: QuantizationSpec) -> dict[str, torch.Tensor]:
    adapter = AdapterWeights(changes={}, replaced={}, alpha=1, use_rslora=False)
    merger = Merger(
        SafetensorsCheckpoint(base), read_shape(base), adapter, quantization_config(quantization, CPU)
    )
    return {tensor.name: merger.read(tensor.name) for tensor in merger.tensors}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [load_to_train, load_packed_to_serve, load_to_serve, merge_nothing])
def test_training_serving_and_exports_have_the_right_weights_and_say_so_in_one_line(
    read: Callable[[Path, QuantizationSpec], dict[str, torch.Tensor]],
    kind: str,
    base: Path,
    kernel: Kernel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = read(base, QuantizationSpec(bnb_4bit_quant_type=kind))

    for name, weight in LlamaForCausalLM.from_pretrained(base).state_dict().items():
        if name.endswith("_proj.weight"):
            packed, state = quantize_4bit(weight, blocksize=64, quant_type=kind)
            assert torch.equal(found[name], expected(packed, state)), name
    lines = [record for record in caplog.records if record.name == "worker.models.cpu_dequantize"]
    assert [record.levelno for record in lines] == [logging.WARNING]
    assert f"a row has {WRONG}, {ALSO_WRONG} numbers" in lines[0].message


def test_the_operator_that_is_checked_is_the_one_that_bitsandbytes_has() -> None:
    """Where this fails, bitsandbytes has moved it: see `worker/models/cpu_dequantize.py` and whether
    4-bit products on a CPU still read their weights through it."""
    assert str(torch.ops.bitsandbytes.dequantize_4bit.default._schema) == SCHEMA
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::gemm_4bit", "CPU")
