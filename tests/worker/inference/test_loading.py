"""Loading a base model: in 4 bits or dequantized, and refused before it takes all of the memory."""

from pathlib import Path

import pytest

from app.core.engine.messages import BaseModelRef
from app.core.errors.jobs import OutOfMemory
from app.core.settings import EngineWeights
from app.core.specs.job import QuantizationSpec
from tests.worker.engine_process import engine_request
from tests.worker.inference.equal_to_peft.playing import Request, as_sequence
from tests.worker.inference.fakes import Mailbox
from worker.inference import loading
from worker.inference.adapters.cache import read_adapter
from worker.inference.batching.scheduler import Scheduler
from worker.inference.engine import Engine
from worker.inference.loading import load_runner, stays_4bit
from worker.models.device import Device, find_device

PACKED = QuantizationSpec()
WHOLE = QuantizationSpec(load_in_4bit=False)
GPU = Device(kind="cuda", name="a GPU", memory_bytes=1 << 34, supports_bf16=True, torch_version="2")


@pytest.mark.parametrize(
    ("weights", "quantization", "device", "free_bytes", "expected"),
    [
        ("auto", PACKED, GPU, 10**9, False),
        ("auto", PACKED, GPU, 10**5, True),
        ("auto", PACKED, find_device(), 10**5, False),
        ("auto", WHOLE, GPU, 10**5, False),
        ("4bit", PACKED, GPU, 10**9, True),
        ("4bit", WHOLE, GPU, 10**9, False),
        ("16bit", PACKED, GPU, 10**5, False),
    ],
)
def test_weights_stay_in_4_bits_where_requested_or_needed(
    models_folder, weights, quantization, device, free_bytes, expected
):
    folder = models_folder / "tiny-llama"

    assert stays_4bit(folder, quantization, device, EngineWeights(weights), free_bytes) is expected


def test_a_base_model_larger_than_the_memory_is_refused_before_it_is_read(models_folder, monkeypatch):
    monkeypatch.setattr(loading, "free_memory_bytes", lambda _: 10**5)
    reference = BaseModelRef(name="tiny-llama", quantization=PACKED)

    with pytest.raises(OutOfMemory) as caught:
        load_runner(engine_request(models_folder), find_device(), reference)

    assert "GB are free" in caught.value.message
    assert "4bit" in caught.value.hint


def test_settings_reach_the_runner_and_base_models_share_the_cache(models_folder, monkeypatch):
    monkeypatch.setattr(loading, "free_memory_bytes", lambda _: 10**9)
    monkeypatch.setattr("worker.inference.model.runner.free_memory_bytes", lambda _: 2 * 10**6)
    reference = BaseModelRef(name="tiny-llama", quantization=WHOLE)
    blocks = []
    for base_models in (1, 2):
        request = engine_request(models_folder, max_rows=20, cache_share=0.4, max_base_models=base_models)
        runner = load_runner(request, find_device(), reference)
        blocks.append(runner.capacity.block_count)

    assert runner.capacity.max_rows == 20
    assert blocks[0] == pytest.approx(2 * blocks[1], abs=1)


@pytest.mark.parametrize(
    ("taken_bytes", "expected"),
    [(0, 60), (10, 60), (30, 60), (50, 50)],
)
def test_memory_that_a_job_has_not_allocated_yet_stays_reserved(monkeypatch, taken_bytes, expected):
    """The job needs 40 of 100 bytes, and has allocated some of them."""
    device = GPU.model_copy(update={"memory_bytes": 100})
    monkeypatch.setattr(loading, "free_memory_bytes", lambda _: 100 - taken_bytes)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 0)

    assert loading.unreserved_bytes(device, reserved_bytes=40) == expected


def answer(models_folder: Path, adapters_folder: Path, weights: str) -> tuple[int, list[list[int]]]:
    """Bits of the weights, and tokens and log-probabilities with and without an adapter."""
    request = engine_request(models_folder, weights=weights, max_rows=4)
    reference = BaseModelRef(name="tiny-llama", quantization=PACKED)
    runner = load_runner(request, find_device(), reference)
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=9, adapter_slot_count=8))
    adapters = {"everything": read_adapter("everything", adapters_folder / "everything")}
    sequences = [
        as_sequence(Request((5, 6, 7, 8, *range(20, 40)), name, 12, []), adapters)
        for name in (None, "everything")
    ]
    for sequence in sequences:
        engine.submit(sequence)
    while not all(map(mail.has_ended, sequences)):
        engine.step()
    return runner.weight_bits, [sequence.token_ids for sequence in sequences]


def test_4_bit_weights_generate_what_dequantized_ones_generate(models_folder, adapters_folder):
    packed_bits, packed = answer(models_folder, adapters_folder, "4bit")
    unpacked_bits, unpacked = answer(models_folder, adapters_folder, "16bit")

    assert (packed_bits, unpacked_bits) == (4, 32)
    assert packed == unpacked
    assert packed[0] != packed[1]
