"""The series of engines: each engine's own, with the worker that it belongs to as a label."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScrapedEngine:
    """An engine's own metrics in Prometheus' text format; `text` is None where it did not respond."""

    worker: str
    text: str | None


class EngineSeries(Collector):
    """The series of all engines; of each name there is one family."""

    def __init__(self, engines: Sequence[ScrapedEngine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Whether each engine responds, and what it says."""
        up = GaugeMetricFamily(
            "tunesmith_engine_up", "Whether an engine responds within a second.", labels=["worker"]
        )
        families: dict[str, Metric] = {}
        for engine in self._engines:
            found = _parse(engine)
            up.add_metric([engine.worker], float(found is not None))
            for own in found or []:
                family = families.setdefault(own.name, Metric(own.name, own.documentation, own.type))
                family.samples += [
                    one._replace(labels={**one.labels, "worker": engine.worker}) for one in own.samples
                ]
        yield up
        yield from families.values()


def _parse(engine: ScrapedEngine) -> list[Metric] | None:
    """The families of an engine, or None where it sent none that can be read."""
    if engine.text is None:
        return None
    try:
        return list(text_string_to_metric_families(engine.text))
    except ValueError:
        _log.warning("The metrics of the engine of %s can't be read", engine.worker)
        return None
