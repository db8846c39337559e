"""What an engine serves, as its clients see it. Knows no torch."""

from app.core.engine.messages import BaseModelRef, EngineState, ServedBase, WaitingRequests
from worker.inference.batching.model_batch import Lane
from worker.inference.batching.scheduler import Scheduler


def describe(scheduler: Scheduler, weight_bits: dict[Lane, int]) -> EngineState:
    """The loaded base models, their adapters, and who waits."""
    lanes = scheduler.lanes
    return EngineState(
        base_model=lanes[-1].base_model if lanes else None,
        adapters=[adapter_id for lane in lanes for adapter_id in lane.slots.resident],
        bases=[
            ServedBase(
                base_model=lane.base_model, weight_bits=weight_bits[lane], adapters=lane.slots.resident
            )
            for lane in lanes
        ],
        waiting=[
            WaitingRequests(base_model=BaseModelRef.model_validate_json(key), count=count)
            for key, count in scheduler.waiting_counts().items()
        ],
    )


def news(state: EngineState) -> tuple[object, ...]:
    """What clients should hear of at once: the rest may wait for the worker's next heartbeat."""
    loaded = {base.base_model.key for base in state.bases}
    missed = {one.base_model.key for one in state.waiting} - loaded
    return loaded, missed, state.loading, state.paused_by, state.shares_with
