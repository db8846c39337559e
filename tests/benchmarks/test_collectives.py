"""How much of a profiled step is an exchange between ranks."""

from typing import Any

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.collectives import measure_collectives, unite


def make_event(name: str, start: int, end: int, *, on_gpu: bool = True, **fields: Any) -> FunctionEvent:
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return FunctionEvent(id=0, name=name, thread=0, start_us=start, end_us=end, device_type=device, **fields)


def test_times_in_which_several_kernels_run_count_once() -> None:
    assert unite([(5, 9), (0, 2), (1, 3), (9, 10)]) == [(0, 3), (5, 10)]


def test_what_is_exchanged_during_computation_is_not_exposed() -> None:
    events = [
        make_event("ncclDevKernel_AllGather_RING_LL", 0, 4000),
        make_event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 3000, 6000),
        make_event("gloo:all_gather", 8000, 9000, on_gpu=False),
        make_event("nccl:all_gather", 0, 9000, is_user_annotation=True),
        make_event("sm90_xmma_gemm_bf16", 1000, 5000),
        make_event("aten::mm", 0, 9000, on_gpu=False),  # its kernel counts
    ]

    found = measure_collectives(events, is_cuda=True)

    assert found == {"collectives_ms": 7.0, "exposed_collectives_ms": 3.0}


def test_on_a_cpu_operators_compute_that_call_no_others() -> None:
    whole = make_event("LlamaLayerBackward", 0, 9000, on_gpu=False)
    product = make_event("aten::mm", 2000, 3000, on_gpu=False)
    whole.append_cpu_child(product)
    exchange = make_event("gloo:all_gather", 1000, 5000, on_gpu=False)
    launch = make_event("c10d::allgather_", 1000, 1500, on_gpu=False)

    found = measure_collectives([whole, product, exchange, launch], is_cuda=False)

    assert found == pytest.approx({"collectives_ms": 4.0, "exposed_collectives_ms": 3.0})
