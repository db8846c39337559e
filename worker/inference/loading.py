"""Puts a base model on the device, ready to answer: how its weights are held, and how much cache it gets."""

import gc
import logging
from pathlib import Path

import torch

from app.core.engine.messages import BaseModelRef
from app.core.errors.jobs import OutOfMemory
from app.core.settings import EngineWeights
from app.core.specs.job import QuantizationSpec
from worker.inference.model.runner import CACHE_SHARE_OF_FREE_MEMORY, ModelRunner
from worker.models import base_model
from worker.models.device import Device, free_memory_bytes
from worker.models.fingerprint import read_header
from worker.processes.reports import EngineRequest

# Unpacked weights may take so much of what is free on a GPU; caches, adapters and graphs need the rest.
_COMFORTABLE_SHARE = 0.6
# NF4 or FP4 with its scales, and what bitsandbytes leaves in 16 bits.
_PACKED_SHARE = 0.4

_log = logging.getLogger(__name__)


def load_runner(
    request: EngineRequest, device: Device, reference: BaseModelRef, *, reserved_bytes: int = 0
) -> ModelRunner:
    """A base model that is ready to answer; a job on the same device is left `reserved_bytes`.

    Raises OutOfMemory, ModelUnsupported, and what finding and reading a base model raises.
    """
    folder = base_model.locate(reference.name, request.models_folder)
    try:
        return _load(request, device, folder, reference.quantization, reserved_bytes)
    except torch.OutOfMemoryError:
        reason = OutOfMemory(f"The device has no memory left for the base model {reference.name!r}.")
    except OutOfMemory as error:
        reason = OutOfMemory(error.message, hint=error.hint)
    # A new error, without the traceback of the first: that would hold on to what was loaded.
    gc.collect()
    if device.is_cuda:
        torch.cuda.empty_cache()
    raise reason


def _load(
    request: EngineRequest, device: Device, folder: Path, quantization: QuantizationSpec, reserved_bytes: int
) -> ModelRunner:
    free_bytes = unreserved_bytes(device, reserved_bytes)
    keeps_4bit = keeps_packed(folder, quantization, device, request.weights, free_bytes)
    _check_room(folder, quantization, device, keeps_4bit, free_bytes)
    model = base_model.load_for_serving(folder, quantization, device, keeps_4bit=keeps_4bit)
    share = request.cache_share or CACHE_SHARE_OF_FREE_MEMORY[device.kind]
    # The runner sees all that is free.
    share *= unreserved_bytes(device, reserved_bytes) / free_memory_bytes(device)
    runner = ModelRunner(
        model,
        device,
        adapter_slot_count=request.adapter_slots,
        max_rows=request.max_rows,
        cache_share=share / request.max_base_models,
    )
    runner.warm_up()
    blocks = runner.capacity.block_count
    _log.info("Serving %s: weights of %d bits, %d cache blocks", folder.name, runner.weight_bits, blocks)
    return runner


def keeps_packed(
    folder: Path, quantization: QuantizationSpec, device: Device, weights: EngineWeights, free_bytes: int
) -> bool:
    """Whether 4-bit weights stay packed. `auto`: where unpacked ones would not fit the device well."""
    if not quantization.load_in_4bit or weights is EngineWeights.UNPACKED:
        return False
    if weights is EngineWeights.PACKED:
        return True
    return device.is_cuda and _unpacked_bytes(folder, quantization, device) > _COMFORTABLE_SHARE * free_bytes


def _check_room(
    folder: Path, quantization: QuantizationSpec, device: Device, keeps_4bit: bool, free_bytes: int
) -> None:
    """Raise OutOfMemory for weights that can't fit: a machine without memory kills, and asks nobody."""
    needed = _unpacked_bytes(folder, quantization, device) * (_PACKED_SHARE if keeps_4bit else 1)
    if needed > free_bytes:
        could_pack = quantization.load_in_4bit and not keeps_4bit
        raise OutOfMemory(
            f"The base model needs about {needed / 1e9:.1f} GB; {free_bytes / 1e9:.1f} GB are free.",
            hint="TUNESMITH_ENGINE_WEIGHTS=4bit needs less than half of that." if could_pack else None,
        )


def unreserved_bytes(device: Device, reserved_bytes: int) -> int:
    """What is free, less what a job beside has not taken yet of what it needs."""
    free_bytes = free_memory_bytes(device)
    if not reserved_bytes or not device.is_cuda:
        return free_bytes
    taken_bytes = device.memory_bytes - free_bytes - torch.cuda.memory_reserved()
    return max(1, free_bytes - max(0, reserved_bytes - taken_bytes))


def _unpacked_bytes(folder: Path, quantization: QuantizationSpec, device: Device) -> int:
    # Some folders hold the same weights a second time, in the layout of another library.
    files = list(folder.glob("model*.safetensors")) or list(folder.glob("*.safetensors"))
    return sum(map(_count_weights, files)) * base_model.compute_dtype(quantization, device).itemsize


def _count_weights(path: Path) -> int:
    return sum(int(torch.Size(tensor.shape).numel()) for tensor in read_header(path).values())
