"""Which optimizations passed their trials on this machine, so that jobs alike need not repeat them.

A record is found again by all that its trials depended on: the base model's weights and configuration, the
adapter's settings, the plan, the device, and the versions of the libraries and of this code.
"""

import hashlib
import json
import logging
import secrets
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import worker
from app.core.specs.job import JobSpec
from worker.models.device import Device
from worker.planning.optimizations import OptimizationPlan
from worker.training.output.folder import versions
from worker.training.trainer import AdapterTrainer

# The oldest go first.
_MAX_RECORDS = 200

log = logging.getLogger(__name__)


class PassedTrials(BaseModel):
    """The optimizations that passed, and those that the model does not support, with the reason."""

    names: list[str]
    left_out: list[str]


class TrialRecords:
    """A folder with a file for each kind of job. Several processes may use it."""

    def __init__(self, folder: Path, base_weights: str) -> None:
        """`base_weights`: the fingerprint of the base model's weights."""
        self._folder = folder
        self._base_weights = base_weights

    def key(self, trainer: AdapterTrainer, spec: JobSpec, plan: OptimizationPlan, device: Device) -> str:
        """What finds the record of a job."""
        about: dict[str, Any] = {
            "versions": versions(),
            "code": _digest_code(),
            "device": [device.kind, device.name, device.torch_version],
            "ranks": trainer.world.size,
            "base_weights": self._base_weights,
            "base_model": trainer.model.get_base_model().config.to_json_string(),
            "method": spec.method,
            "lora": spec.lora.model_dump(mode="json"),
            "quantization": spec.quantization.model_dump(mode="json"),
            "mixed_precision": trainer.accelerator.mixed_precision,
            "checkpoints": trainer.args.gradient_checkpointing,
            "plan": repr(plan),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def find(self, key: str) -> PassedTrials | None:
        """The record of an earlier job; None where there is none, or a damaged one."""
        try:
            return PassedTrials.model_validate_json(self._path(key).read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, key: str, passed: PassedTrials) -> None:
        """Write a record. Where that fails, the next job repeats the trials."""
        writing = self._folder / f".{secrets.token_hex(8)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            writing.write_text(passed.model_dump_json())
            writing.replace(self._path(key))
            records = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for old in records[:-_MAX_RECORDS]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("That these optimizations passed their trials was not recorded: %s", error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


@cache
def _digest_code() -> str:
    """A digest of all modules of the worker: any of them may be part of what a trial computes."""
    digest = hashlib.sha256()
    folder = Path(worker.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
