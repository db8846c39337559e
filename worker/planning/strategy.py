"""How the devices of a job share it: each holds the whole base model (ddp), or they divide it (fsdp)."""

from dataclasses import dataclass, replace

from app.core.errors import InvalidRequest
from app.core.specs.job import JobSpec
from app.core.specs.resources import Strategy
from worker.planning.batch_size import ChosenBatch, PlannedJob, RowLengths, choose_batch_size


@dataclass(frozen=True)
class SharedJob:
    """A job as its devices share it, and its batch size."""

    job: PlannedJob
    batch: ChosenBatch
    reason: str | None  # a sentence why they share it so; None: the job has one device

    @property
    def strategy(self) -> Strategy | None:
        """None: the job has one device."""
        if self.job.spec.resources.ranks == 1:
            return None
        return "fsdp" if self.job.parts > 1 else "ddp"


def choose_strategy(job: PlannedJob, rows: RowLengths, *, free_bytes: int) -> SharedJob:
    """The job as its devices share it, and its batch size. `free_bytes`: of the device with the least.

    With `auto` the base model is divided where the job does not fit a device otherwise, and where that is
    possible. Raises InvalidRequest where `fsdp` is not.
    """
    resources, obstacle = job.spec.resources, job.spec.fsdp_obstacle
    asked = "resources.strategy asks for it."
    if resources.gpus > 1 and resources.strategy == "fsdp":
        if obstacle:
            raise InvalidRequest(f"resources.strategy fsdp {obstacle}.", param="resources.strategy")
        return _divide(job, rows, free_bytes, reason=asked)
    whole = choose_batch_size(job, rows, free_bytes=free_bytes)
    if resources.ranks == 1:
        return SharedJob(job, whole, None)
    if resources.strategy == "ddp":
        return SharedJob(job, whole, asked)
    needed = f"about {whole.memory.total / 1e9:.1f} GB of memory, of {free_bytes / 1e9:.1f} GB free"
    if whole.fits:
        return SharedJob(job, whole, f"the job fits one of them; it needs {needed}.")
    if obstacle:
        return SharedJob(job, whole, f"the job needs {needed}, but resources.strategy fsdp {obstacle}.")
    return _divide(job, rows, free_bytes, reason=f"with the whole base model each would need {needed}.")


def advise_on_memory(spec: JobSpec, strategy: Strategy | None) -> str:
    """What to do about a job that does not fit, for a person."""
    less = "Lower training.max_seq_length, the batch size or lora.r, or name a smaller base model."
    if strategy == "fsdp":
        return f"{less} Or raise resources.gpus: each GPU then holds a smaller part of the base model."
    if spec.fsdp_obstacle is None:
        change = "set resources.strategy to fsdp" if spec.resources.gpus > 1 else "raise resources.gpus"
        return f"{less} Or {change}: several GPUs can divide the base model."
    return less


def _divide(job: PlannedJob, rows: RowLengths, free_bytes: int, *, reason: str) -> SharedJob:
    divided = replace(job, parts=job.spec.resources.gpus)
    return SharedJob(divided, choose_batch_size(divided, rows, free_bytes=free_bytes), reason)
