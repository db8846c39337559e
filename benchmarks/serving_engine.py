"""The engine in process: tokens a second, time to the first token, time between tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from app.core.engine.messages import BaseModelRef, Finished, Reply
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from benchmarks.random_prompts import prompts
from benchmarks.timings import summarize
from worker.inference.adapters.cache import CachedAdapter, read_adapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.model.runner import ModelRunner
from worker.inference.preprocessing import decode
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description


@dataclass
class Clock:
    """Records when each sequence's replies are delivered."""

    times: dict[Sequence, list[float]] = field(default_factory=dict)
    ended: set[Sequence] = field(default_factory=set)

    def deliver(self, replies: list[tuple[Sequence, Reply]]) -> None:
        """Record the replies of a step. Called by the engine."""
        now = time.perf_counter()
        for sequence, reply in replies:
            self.times.setdefault(sequence, []).append(now)
            if reply.type != "delta":
                assert isinstance(reply, Finished), reply
                self.ended.add(sequence)


class Bench:
    """Measures an engine with one base model, which is loaded once."""

    def __init__(
        self,
        folder: Path,
        *,
        load_in_4bit: bool,
        adapters: list[Path],
        keeps_4bit: bool = False,
        prepare: Callable[[PreTrainedModel], None] = lambda _: None,
        **options: Any,
    ) -> None:
        """`prepare` gets the model once it is loaded."""
        began = time.perf_counter()
        device = find_device()
        self.base = BaseModelRef(name=folder.name, quantization=QuantizationSpec(load_in_4bit=load_in_4bit))
        load = base_model.load_model if keeps_4bit else base_model.load_for_serving
        model = load(folder, self.base.quantization, device).eval()
        prepare(model)
        self.vocabulary_size = model.config.vocab_size
        self.loaded_seconds = time.perf_counter() - began
        self.runner = ModelRunner(model, device, adapter_slot_count=max(8, len(adapters)), **options)
        self.runner.warm_up()
        self.ready_seconds = time.perf_counter() - began
        tokenizer = description.load_tokenizer(folder)
        # The checkpoint's vocabulary is larger than its tokenizer's: every id is decoded as a letter.
        letters = [index for index in range(256) if decode(tokenizer, [index]).isalpha()]
        self._decode = lambda token_ids: decode(
            tokenizer, [letters[token_id % len(letters)] for token_id in token_ids]
        )
        self.adapters: list[CachedAdapter] = [read_adapter(one.name, one) for one in adapters]
        self._runs = 0
        self.clock = Clock()
        scheduler = Scheduler(max_waiting=10_000, adapter_slot_count=max(8, len(adapters)))
        self.engine = Engine(lambda _: self.runner, lambda replies: self.clock.deliver(replies), scheduler)

    def run(self, batch: int, adapters: int, *, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """Measure `batch` sequences at once: greedy, distinct prompts, adapters in turn."""
        self._runs += 1
        texts = prompts(batch, prompt_tokens, self.vocabulary_size, seed=self._runs)
        return {"batch": batch, "adapters": adapters, **self.answer(texts, adapters, new_tokens)}

    def answer(self, texts: list[list[int]], adapters: int, new_tokens: int) -> dict[str, Any]:
        """Measure these prompts, all at once."""
        began = time.perf_counter()
        sequences = self.begin(texts, adapters, new_tokens)
        self.finish(sequences)
        seconds = time.perf_counter() - began
        firsts = [self.clock.times[sequence][0] - began for sequence in sequences]
        gaps = [
            after - before
            for sequence in sequences
            for before, after in zip(self.clock.times[sequence], self.clock.times[sequence][1:], strict=False)
        ]
        made = len(texts) * new_tokens
        return {"tokens_per_second": round(made / seconds, 1), **summarize(firsts, gaps)}

    def begin(self, texts: list[list[int]], adapters: int, new_tokens: int) -> list[Sequence]:
        """Submit these prompts, with a new clock; returns their sequences."""
        self.clock = Clock()
        sequences = [
            self._sequence(text, self.adapters[index % adapters] if adapters else None, new_tokens)
            for index, text in enumerate(texts)
        ]
        for sequence in sequences:
            self.engine.submit(sequence)
        return sequences

    def finish(self, sequences: list[Sequence]) -> None:
        """Run steps until all these have ended."""
        while not self.clock.ended.issuperset(sequences):
            self.engine.step()

    def _sequence(self, token_ids: list[int], adapter: CachedAdapter | None, new_tokens: int) -> Sequence:
        return Sequence(
            Prompt(
                base_model=self.base,
                adapter=adapter,
                token_ids=token_ids,
                sampling=Sampling(temperature=0, max_new_tokens=new_tokens),
                seed=0,
                end_ids=(),
                decode=self._decode,
            )
        )
