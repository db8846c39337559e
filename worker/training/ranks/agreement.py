"""What the ranks agree on before each optimizer step: the divisor of its loss, a stop, and rows in a pass."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from worker.training.progress.counters import Counters
from worker.training.ranks.world import World


@dataclass(frozen=True)
class StepAgreement:
    """Sums over all ranks for the coming step. `batches`: those from which something is learned."""

    items: int
    batches: int


class RankAgreement:
    """Exchanges, once a step, what each rank knows alone. `stop` is set on all ranks at the same step."""

    def __init__(
        self,
        world: World,
        asked_to_stop: threading.Event,
        counters: Counters,
        warn: Callable[[str, str], None],
    ) -> None:
        """`warn`: adds a warning, of a code, to the job's events."""
        self.world = world
        self._warn = warn
        self.stop = asked_to_stop if world.is_alone else threading.Event()
        self._asked_to_stop = asked_to_stop
        self._counters = counters

    def agree(self, *, items: int, batches: int) -> StepAgreement:
        """Agree on a step of which this rank computes so many items and batches.

        Where memory has run out on one rank, all make passes of as few rows from now on.
        """
        counters = self._counters
        found = self.world.gather_numbers(
            [
                items,
                batches,
                self._asked_to_stop.is_set(),
                counters.train_rows_at_once or 0,
                counters.eval_rows_at_once or 0,
            ]
        )
        all_items, all_batches, stops, train_rows, eval_rows = zip(*found, strict=True)
        if any(stops):
            self.stop.set()
        fewest = _fewest(train_rows)
        if fewest != counters.train_rows_at_once:
            self._say_smaller(fewest)
        counters.train_rows_at_once = fewest
        counters.eval_rows_at_once = _fewest(eval_rows)
        return StepAgreement(items=round(sum(all_items)), batches=round(sum(all_batches)))

    def _say_smaller(self, rows: int | None) -> None:
        sequences = f"{rows} sequence{'s' if rows != 1 else ''}"
        self._warn(
            "out_of_memory",
            f"Memory ran out on another device: all make passes of {sequences} from now on. The effective "
            "batch stays the same.",
        )


def _fewest(rows: tuple[float, ...]) -> int | None:
    return min((round(number) for number in rows if number), default=None)
