"""Events of a job as named values, as trackers take them. Pure.

The names are those that transformers' own callbacks give them (`train/loss`, `eval/loss`), as in the job's
TensorBoard files, so that runs of other programs can be compared.
"""

import math

from app.core.jobs.events import AnyEventData, Event, FinalEvaluation
from worker.trackers.messages import TrackedPoint

_LEFT_OUT = {"type", "step", "total_steps", "eta_seconds"}
_NAMES = {"token_accuracy": "mean_token_accuracy", "tokens": "num_tokens"}
_PREFIXES = {"metrics": "train", "eval": "eval"}


def make_point(event: Event) -> TrackedPoint:
    """The values of an event of type `metrics`, `eval` or `final_eval`, without those that are not finite."""
    values = {name: value for name, value in _values_of(event.data).items() if math.isfinite(value)}
    return TrackedPoint(step=getattr(event.data, "step", 0), at=event.at, values=values)


def _values_of(entry: AnyEventData) -> dict[str, float]:
    if isinstance(entry, FinalEvaluation):
        return {"final/base_loss": entry.base_loss, "final/adapter_loss": entry.adapter_loss}
    prefix = _PREFIXES[entry.type]
    found = {name: getattr(entry, name) for name in type(entry).model_fields if name not in _LEFT_OUT}
    return {
        f"{prefix}/{_NAMES.get(name, name)}": float(value)
        for name, value in found.items()
        if value is not None
    }
