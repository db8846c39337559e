"""Whether a job of the default QLoRA settings on a base model fits into the device's memory.

Reads no weights: of a Hub model that is not on this machine, the config alone is downloaded.
"""

from functools import lru_cache
from pathlib import Path

from app.core.base_models.messages import FIT_ROW_TOKENS, Fit, FitRequest
from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from worker.models.device import Device
from worker.models.files import description, location, prequantized
from worker.planning import batch_size
from worker.preflight.environment import PreflightEnvironment

# Enough rows for every batch to be full.
_ROWS = 1000


def estimate_fit(request: FitRequest, environment: PreflightEnvironment) -> Fit:
    """Estimate the peak memory of a job with full rows against all memory of the device.

    Raises ModelMissing, ModelGated, HubUnreachable, ModelUnreadable, BadTarget.
    """
    name = request.base_model
    folder = location.find_here(name, environment.models_folder) or location.find_downloaded(name)
    folder = folder or location.download_config(name, environment.cache_folder / "configs")
    changed = (folder / description.CONFIG).stat().st_mtime_ns
    device = environment.device.model_dump_json()
    return _estimate(name, folder, changed, device, environment.path)


@lru_cache(maxsize=256)
def _estimate(name: str, folder: Path, _changed: int, device_json: str, path: TrainingPath) -> Fit:
    """Cached while the config does not change: lists show many models, again and again."""
    device = Device.model_validate_json(device_json)
    spec = JobSpec.model_validate({"base_model": name, "dataset": "ds_0000000000000000"})
    model = description.build_empty(folder)
    prequantized.check(model.config, name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    job = batch_size.PlannedJob.read(spec, device, model, path)
    length = min(FIT_ROW_TOKENS, description.read_context_length(folder) or FIT_ROW_TOKENS)
    rows = batch_size.RowLengths(longest=length, shortest=length, count=_ROWS, scored=length)
    chosen = batch_size.choose_batch_size(job, rows, free_bytes=device.memory_bytes)
    return Fit(
        base_model=name,
        fits=chosen.fits,
        needed_bytes=chosen.memory.total,
        memory_bytes=device.memory_bytes,
        device=device.name,
        is_gpu=device.is_cuda,
        parameters=parameters,
        batch_size=int(chosen.training.per_device_train_batch_size),
        row_tokens=length,
        gradient_checkpointing=chosen.training.gradient_checkpointing is True,
    )
