"""The engine's metrics in Prometheus' text format. Knows no torch.

Their names are those of vLLM, of the same meaning, with `tunesmith_engine_` in front; times are in seconds.
(docs.vllm.ai, "Production Metrics".)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.core.engine.messages import Failed, Finished, Reply
from worker.inference.batching.counts import StepCounts
from worker.inference.batching.model_batch import ModelBatch

_STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_FIRST_TOKEN_BUCKETS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 300)
_REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_LOAD_BUCKETS = (1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200)


@dataclass(frozen=True)
class EngineGauges:
    """What the engine does now. `waiting` counts sequences by the name of their base model."""

    running: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    batches: Sequence[ModelBatch] = ()


class EngineMetrics:
    """Counters and histograms of one engine. `read_gauges` is called in another thread than the loop's."""

    def __init__(self, read_gauges: Callable[[], EngineGauges]) -> None:
        self.counts = StepCounts()
        self._registry = CollectorRegistry()
        self._steps = self._histogram("step_seconds", "Time of one step of a batch.", _STEP_BUCKETS)
        self._loads = self._histogram(
            "base_model_load_seconds", "Time until a base model was loaded.", _LOAD_BUCKETS
        )
        self._first_tokens = self._histogram(
            "time_to_first_token_seconds",
            "From the request to the first token, of answers that are complete.",
            _FIRST_TOKEN_BUCKETS,
        )
        self._later_tokens = self._histogram(
            "time_per_output_token_seconds", "Mean time of each further token of an answer.", _TOKEN_BUCKETS
        )
        self._requests = self._histogram(
            "e2e_request_latency_seconds", "From the request to the last token.", _REQUEST_BUCKETS
        )
        self._ends = Counter(
            "tunesmith_engine_requests",
            "Requests that have ended, by the reason, or the code of the error.",
            ["finished_reason"],
            registry=self._registry,
        )
        self._registry.register(_StateCollector(self.counts, read_gauges))

    def observe_step(self, seconds: float) -> None:
        """Count one step of a batch."""
        self._steps.observe(seconds)

    def observe_load(self, seconds: float) -> None:
        """Count a base model that was loaded."""
        self._loads.observe(seconds)

    def observe_reply(self, reply: Reply) -> None:
        """Count the end of a request; other replies change nothing."""
        if isinstance(reply, Failed):
            self._ends.labels(reply.code).inc()
        elif isinstance(reply, Finished):
            self._observe_end(reply)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _observe_end(self, finished: Finished) -> None:
        timings, count = finished.timings, finished.usage.completion_tokens
        self._ends.labels(finished.finish_reason).inc()
        self._requests.observe(timings.total_seconds)
        if count:
            first = timings.queued_seconds + timings.first_token_seconds
            self._first_tokens.observe(first)
            if count > 1:
                self._later_tokens.observe(max(0.0, timings.total_seconds - first) / (count - 1))

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"tunesmith_engine_{name}", help_text, buckets=buckets, registry=self._registry)


class _StateCollector(Collector):
    """The counts, and what the engine does at the time of a scrape."""

    def __init__(self, counts: StepCounts, read_gauges: Callable[[], EngineGauges]) -> None:
        self._counts = counts
        self._read_gauges = read_gauges

    def describe(self) -> Iterator[Metric]:
        """Return nothing: otherwise the registry would read the engine's state when it is created."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Tokens, loads, sequences, and the cache blocks and adapter slots of each loaded base model."""
        counts, found = self._counts, self._read_gauges()
        yield _count("prompt_tokens", "Tokens of prompts that were read.", counts.prompt_tokens)
        yield _count("prompt_tokens_cached", "Tokens of prompts found in a KV cache.", counts.cached_tokens)
        yield _count("generation_tokens", "Tokens that were made.", counts.generation_tokens)
        yield _count("adapter_loads", "Adapters that were loaded onto the device.", counts.adapter_loads)
        yield _count(
            "spec_decode_num_draft_tokens", "Drafted tokens that were verified.", counts.draft_tokens
        )
        yield _count(
            "spec_decode_num_accepted_tokens", "Drafted tokens that answers have.", counts.accepted_tokens
        )
        yield GaugeMetricFamily(
            "tunesmith_engine_num_requests_running", "Sequences in batches.", value=found.running
        )
        waiting = _gauge("num_requests_waiting", "Sequences that wait.", "base_model")
        for name, count in found.waiting.items() or [("", 0)]:
            waiting.add_metric([name], count)
        yield waiting
        yield from _describe_batches(found.batches)


def _describe_batches(batches: Sequence[ModelBatch]) -> Iterator[Metric]:
    columns: dict[str, tuple[str, Callable[[ModelBatch], int]]] = {
        "rows": ("Sequences that a batch may have.", lambda batch: batch.capacity.max_rows),
        "rows_used": ("Sequences that a batch has.", lambda batch: len(batch.running)),
        "kv_cache_blocks": ("Blocks of the KV cache.", lambda batch: batch.capacity.block_count - 1),
        "kv_cache_blocks_used": ("Blocks that sequences use now.", lambda batch: batch.used_blocks),
        "adapter_slots": ("Adapters that fit onto the device.", lambda batch: batch.slots.count),
        "adapter_slots_used": ("Adapters on the device.", lambda batch: len(batch.slots.resident)),
    }
    for name, (help_text, read) in columns.items():
        gauge = _gauge(name, help_text, "base_model")
        for base_model, group in _by_name(batches).items():
            gauge.add_metric([base_model], sum(map(read, group)))
        yield gauge


def _by_name(batches: Sequence[ModelBatch]) -> dict[str, list[ModelBatch]]:
    """The batches by base model: one may be loaded twice, in two quantizations."""
    groups: dict[str, list[ModelBatch]] = {}
    for batch in batches:
        groups.setdefault(batch.base_model.name, []).append(batch)
    return groups


def _count(name: str, help_text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"tunesmith_engine_{name}", help_text, value=value)


def _gauge(name: str, help_text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tunesmith_engine_{name}", help_text, labels=[label])
