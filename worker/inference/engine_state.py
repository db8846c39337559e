"""The state of the engine as its clients see it. Knows no torch."""

from app.core.engine.messages import BaseModelRef
from app.core.engine.state import EngineState, ServedBase, WaitingRequests
from worker.inference.batching.model_batch import ModelBatch
from worker.inference.batching.scheduler import Scheduler


def describe(scheduler: Scheduler, weight_bits: dict[ModelBatch, int]) -> EngineState:
    """The loaded base models, their adapters, and the numbers of waiting requests."""
    batches = scheduler.batches
    return EngineState(
        base_model=batches[-1].base_model if batches else None,
        adapters=[adapter_id for batch in batches for adapter_id in batch.slots.resident],
        bases=[
            ServedBase(
                base_model=batch.base_model,
                weight_bits=weight_bits[batch],
                adapters=batch.slots.resident,
                rows=batch.capacity.max_rows,
            )
            for batch in batches
        ],
        max_base_models=scheduler.max_base_models,
        waiting=[
            WaitingRequests(base_model=BaseModelRef.model_validate_json(key), count=count)
            for key, count in scheduler.waiting_counts().items()
        ],
    )


def urgent_part(state: EngineState) -> tuple[object, ...]:
    """The part of the state whose changes are reported at once, not with the worker's next heartbeat."""
    loaded = {base.base_model.key for base in state.bases}
    missed = {one.base_model.key for one in state.waiting} - loaded
    return loaded, missed, state.loading, state.paused_by, state.shares_with
