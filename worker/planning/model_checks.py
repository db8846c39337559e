"""What a base model's structure says about a job, before its weights are there: for preflight and the job.

The model is on the meta device; nothing here changes it.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from app.core.specs.job import JobSpec
from worker.models import targets


@dataclass(frozen=True)
class Finding:
    """Something that the person should know: a warning of the preflight, and of the job."""

    code: str
    message: str


def check_model(model: PreTrainedModel, spec: JobSpec) -> list[Finding]:
    """What should be known about this job on this base model. Raises BadTarget."""
    targets.check_names(model, spec)
    findings = []
    if chosen := targets.explain_default(model, spec.lora):
        findings.append(Finding("default_targets", chosen))
    return findings
