"""Answers that quote their prompt, and others, with and without drafts looked up in the text.

The base model's own greedy answers to prompts of each kind, in process, the same request with
`ENGINE_SPECULATION` off and on in turn. Each pair runs several times; the ratios are medians over the pairs.
Processor time is the process's own, so that other work on the machine changes it less than the rate.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.engine.messages import Finished, Reply
from app.core.engine.sampling import Sampling
from benchmarks.serving_engine import Bench
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Prompt, Sequence
from worker.inference.engine import Engine, EngineOptions
from worker.inference.preprocessing import decode
from worker.models.files import description

_CODE = '''import json
from pathlib import Path


class Inventory:
    """The items of a shop, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items: dict[str, int] = {}

    def load(self) -> None:
        self.items = json.loads(self.path.read_text())

    def save(self) -> None:
        self.path.write_text(json.dumps(self.items, indent=2))

    def add(self, name: str, count: int) -> None:
        self.items[name] = self.items.get(name, 0) + count

    def remove(self, name: str, count: int) -> None:
        if self.items.get(name, 0) < count:
            raise ValueError(f"There are fewer than {count} of {name}.")
        self.items[name] -= count
'''
_LETTER = (
    "Dear Ms. Okonkwo-Lindqvist, thank you for your order number 48213-AB of March 14. We have sent two "
    "stainless steel kettles, model Kestrel 1.7 L, and one replacement filter, model KF-220, to Hafenstrasse "
    "12, 20457 Hamburg. The total is 143.80 euros; please pay it to the account DE89 3704 0044 0532 0130 00 "
    "by April 2. Yours sincerely, Benedikt Achterberg, Achterberg Household Goods."
)
_REPORT = (
    "The Elbe tunnel between the harbour and the southern bank will be closed for repairs from June to "
    "September. Engineers of the port authority found cracks in the tiles of the eastern tube in January. "
    "About three hundred thousand people use the tunnel every year, most of them cyclists. During the "
    "repairs a ferry will run every ten minutes between six in the morning and eleven at night. The city "
    "expects the repairs to cost eight million euros, of which the federal government pays half."
)
_PROMPTS = {
    "code, edited": "Repeat this Python file, but rename the class Inventory to Stock. Print only the code."
    f"\n\n```python\n{_CODE}```",
    "JSON, extracted": "Extract customer, order, items, address, account and sender of this letter as JSON, "
    f"in the letter's own words.\n\n{_LETTER}",
    "summary, in quotes": "Summarize this report by repeating its most important sentences word for word."
    f"\n\n{_REPORT}",
    "a story": "Write a story about a fisherman who finds a lamp.",
    "an explanation": "What are the advantages and the disadvantages of solar energy?",
}
_QUOTING = ("code, edited", "JSON, extracted", "summary, in quotes")


@dataclass(frozen=True)
class _Run:
    """One measurement of all requests at once."""

    seconds: float
    processor_seconds: float
    sequences: list[Sequence]

    @property
    def token_count(self) -> int:
        return sum(len(one.token_ids) for one in self.sequences)


class SpeculationBench:
    """Measures one base model without adapters."""

    def __init__(self, folder: Path, bench: Bench) -> None:
        self._bench = bench
        self._tokenizer = description.load_tokenizer(folder)
        self._ended: set[Sequence] = set()
        # As in a service, what an engine has measured of its steps stays known to it.
        self._engines = {speculates: self._engine(speculates=speculates) for speculates in (False, True)}

    def rows(self, new_tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
        """A row for each kind of answer alone, and for mixed batches."""
        for speculates in (False, True):
            self._run(["code, edited"], new_tokens, speculates=speculates)
        for name in _PROMPTS:
            yield {"answers": name, **self._compare([name], new_tokens, repeats)}
        others = [name for name in _PROMPTS if name not in _QUOTING]
        for name, names in (
            ("four that quote", ["code, edited", *_QUOTING]),
            ("one that quotes, three others", ["code, edited", *others, others[0]]),
        ):
            yield {"answers": name, **self._compare(names, new_tokens, repeats)}

    def _compare(self, names: list[str], new_tokens: int, repeats: int) -> dict[str, Any]:
        runs = [
            [self._run(names, new_tokens, speculates=speculates) for speculates in (False, True)]
            for _ in range(repeats)
        ]
        last = runs[-1][1]
        return {
            "batch": len(names),
            "tokens": last.token_count,
            "tokens_per_second_off": _median(off.token_count / off.seconds for off, _ in runs),
            "tokens_per_second_on": _median(on.token_count / on.seconds for _, on in runs),
            "ratio": _median(off.seconds / on.seconds for off, on in runs),
            "processor_time_ratio": _median(off.processor_seconds / on.processor_seconds for off, on in runs),
            "drafted": sum(one.drafted_count for one in last.sequences),
            "accepted": sum(one.accepted_count for one in last.sequences),
            "same_tokens": all(
                [one.token_ids for one in off.sequences] == [one.token_ids for one in on.sequences]
                for off, on in runs
            ),
        }

    def _run(self, names: list[str], new_tokens: int, *, speculates: bool) -> _Run:
        engine = self._engines[speculates]
        sequences = [self._sequence(name, new_tokens) for name in names]
        for sequence in sequences:
            engine.submit(sequence)
        # The prompts are read before the clock starts.
        while not all(one.token_ids for one in sequences):
            engine.step()
        began, processor_began = time.perf_counter(), time.process_time()
        while not self._ended.issuperset(sequences):
            engine.step()
        return _Run(time.perf_counter() - began, time.process_time() - processor_began, sequences)

    def _engine(self, *, speculates: bool) -> Engine:
        return Engine(
            lambda _: self._bench.runner,
            self._deliver,
            Scheduler(max_waiting=99, adapter_slot_count=1),
            options=EngineOptions(speculates=speculates),
        )

    def _deliver(self, replies: list[tuple[Sequence, Reply]]) -> None:
        self._ended.update(sequence for sequence, reply in replies if isinstance(reply, Finished))

    def _sequence(self, name: str, new_tokens: int) -> Sequence:
        tokenizer = self._tokenizer
        messages = [{"role": "user", "content": _PROMPTS[name]}]
        token_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return Sequence(
            Prompt(
                base_model=self._bench.base,
                adapter=None,
                token_ids=token_ids,
                sampling=Sampling(temperature=0, max_new_tokens=new_tokens),
                seed=0,
                end_ids={tokenizer.eos_token_id},
                decode=lambda ids: decode(tokenizer, ids),
            )
        )


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 2)
