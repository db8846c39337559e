"""Loads a base model on the device; chooses whether its weights stay in 4 bits, and the KV cache's size."""

import gc
import logging
import math
from pathlib import Path

import torch

from app.core.engine.messages import BaseModelRef, ServingPath
from app.core.errors.jobs import OutOfMemory
from app.core.settings import EngineWeights
from app.core.specs.job import QuantizationSpec
from worker.inference.base_folders import BaseFolders
from worker.inference.batching.runner import Runner
from worker.inference.general.runner import GeneralRunner
from worker.inference.model.runner import CACHE_SHARE_OF_FREE_MEMORY, ModelRunner
from worker.models import base_model
from worker.models.device import Device, free_memory_bytes, is_out_of_memory
from worker.models.files import description
from worker.models.files.fingerprint import read_headers
from worker.models.files.reading import reading
from worker.processes.reports import EngineRequest

# Largest share of the free GPU memory for dequantized weights; cache, adapters and graphs need the rest.
_MAX_DEQUANTIZED_SHARE = 0.6
# Size of 4-bit weights relative to 16-bit ones: NF4 or FP4 with its scales, and the layers left in 16 bits.
_4BIT_SHARE = 0.4

_log = logging.getLogger(__name__)


def load_runner(
    request: EngineRequest,
    device: Device,
    reference: BaseModelRef,
    *,
    reserved_bytes: int = 0,
    folders: BaseFolders | None = None,
) -> Runner:
    """Returns a loaded and warmed up base model; leaves `reserved_bytes` to a job on the same device.

    `folders` are those of the preprocessing, which then reads the files of the same revision.
    Raises OutOfMemory, ModelUnsupported, and the errors of finding and reading a base model.
    """
    folder = (folders or BaseFolders(request.models_folder)).find_newest(reference.name)
    try:
        with reading(f"The base model {reference.name!r}", hint=description.MODEL_HINT):
            load = _load_general if reference.path is ServingPath.GENERAL else _load_paged
            return load(request, device, folder, reference.quantization, reserved_bytes)
    except OutOfMemory as error:
        reason = OutOfMemory(error.message, hint=error.hint)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = OutOfMemory(f"There is no memory left for the base model {reference.name!r}.")
    # A new error: the traceback of the first one would keep the loaded tensors alive.
    gc.collect()
    if device.is_cuda:
        torch.cuda.empty_cache()
    raise reason


def _load_paged(
    request: EngineRequest, device: Device, folder: Path, quantization: QuantizationSpec, reserved_bytes: int
) -> ModelRunner:
    free_bytes = unreserved_bytes(device, reserved_bytes)
    keeps_4bit = stays_4bit(folder, quantization, device, request.weights, free_bytes)
    _check_memory(folder, quantization, device, keeps_4bit, free_bytes)
    model = base_model.load_for_serving(folder, quantization, device, keeps_4bit=keeps_4bit)
    runner = ModelRunner(
        model,
        device,
        adapter_slot_count=request.adapter_slots,
        max_rows=request.max_rows,
        cache_share=_cache_share(request, device, reserved_bytes),
    )
    runner.warm_up()
    blocks = runner.capacity.block_count
    _log.info("Serving %s: weights of %d bits, %d cache blocks", folder.name, runner.weight_bits, blocks)
    return runner


def _load_general(
    request: EngineRequest, device: Device, folder: Path, quantization: QuantizationSpec, reserved_bytes: int
) -> GeneralRunner:
    # As the job held them, where they were trained against 4-bit weights; a CPU multiplies those slowly.
    keeps_4bit = quantization.load_in_4bit and (
        request.weights is EngineWeights.FOUR_BIT
        or (request.weights is EngineWeights.AUTO and device.is_cuda)
    )
    _check_memory(folder, quantization, device, keeps_4bit, unreserved_bytes(device, reserved_bytes))
    model = base_model.load_for_serving(folder, quantization, device, keeps_4bit=keeps_4bit)
    runner = GeneralRunner(
        model,
        device,
        max_rows=request.max_rows,
        cache_share=_cache_share(request, device, reserved_bytes),
    )
    _log.info("Serving %s by transformers and PEFT: weights of %d bits", folder.name, runner.weight_bits)
    return runner


def _cache_share(request: EngineRequest, device: Device, reserved_bytes: int) -> float:
    """The share of all free memory that one base model's cache may take; what is reserved is left out."""
    share = request.cache_share or CACHE_SHARE_OF_FREE_MEMORY[device.kind]
    return (
        share * unreserved_bytes(device, reserved_bytes) / free_memory_bytes(device) / request.max_base_models
    )


def stays_4bit(
    folder: Path, quantization: QuantizationSpec, device: Device, weights: EngineWeights, free_bytes: int
) -> bool:
    """Whether the weights stay in 4 bits. `auto`: where dequantized ones would take too much of a GPU."""
    if not quantization.load_in_4bit or weights is EngineWeights.SIXTEEN_BIT:
        return False
    if weights is EngineWeights.FOUR_BIT:
        return True
    return (
        device.is_cuda
        and _dequantized_bytes(folder, quantization, device) > _MAX_DEQUANTIZED_SHARE * free_bytes
    )


def _check_memory(
    folder: Path, quantization: QuantizationSpec, device: Device, keeps_4bit: bool, free_bytes: int
) -> None:
    """Raise OutOfMemory for weights that can't fit: otherwise the system would kill the process."""
    needed = _dequantized_bytes(folder, quantization, device) * (_4BIT_SHARE if keeps_4bit else 1)
    if needed > free_bytes:
        could_stay_4bit = quantization.load_in_4bit and not keeps_4bit
        raise OutOfMemory(
            f"The base model needs about {needed / 1e9:.1f} GB; {free_bytes / 1e9:.1f} GB are free.",
            hint="TUNESMITH_ENGINE_WEIGHTS=4bit needs less than half of that." if could_stay_4bit else None,
        )


def unreserved_bytes(device: Device, reserved_bytes: int) -> int:
    """Free memory in bytes, less the part of `reserved_bytes` that the job has not allocated yet."""
    free_bytes = free_memory_bytes(device)
    if not reserved_bytes or not device.is_cuda:
        return free_bytes
    taken_bytes = device.memory_bytes - free_bytes - torch.cuda.memory_reserved()
    return max(1, free_bytes - max(0, reserved_bytes - taken_bytes))


def _dequantized_bytes(folder: Path, quantization: QuantizationSpec, device: Device) -> int:
    # Bytes without a sign hold two weights of 4 bits each, in files that are quantized already.
    weights = sum(
        math.prod(tensor.shape) * (2 if tensor.type == "U8" else 1)
        for tensor in read_headers(folder).values()
    )
    return weights * base_model.compute_dtype(quantization, device).itemsize
