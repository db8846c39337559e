"""Answers that quote their prompt, and others, with and without drafts looked up in the text.

`answers`: the base model's own greedy answers to prompts of each kind. `copies`: answers that copy the prompt
and differ from it every so many tokens, on a model of any shape with random weights, which is made to do so.

In process, the same request with `ENGINE_SPECULATION` off and on in turn. Each pair runs several times; the
ratios are medians over the pairs. Processor time is the process's own, so that other work on the machine
changes it less than the rate.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.engine.messages import Finished, Reply
from app.core.engine.sampling import Sampling
from benchmarks.serving_engine import Bench
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
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


def answers(folder: Path, bench: Bench, new_tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each kind of answer alone, and for mixed batches. The model needs a chat template."""
    tokenizer = description.load_tokenizer(folder)
    prompts: dict[str, list[int]] = {
        name: tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for name, text in _PROMPTS.items()
    }
    speculation = SpeculationBench(bench, lambda ids: decode(tokenizer, ids), {tokenizer.eos_token_id})
    speculation.warm_up([prompts["code, edited"]], new_tokens)
    for name, prompt in prompts.items():
        yield {"answers": name, **speculation.compare([prompt], new_tokens, repeats)}
    others = [name for name in prompts if name not in _QUOTING]
    for name, names in (
        ("four that quote", ["code, edited", *_QUOTING]),
        ("one that quotes, three others", ["code, edited", *others, others[0]]),
    ):
        yield {"answers": name, **speculation.compare([prompts[one] for one in names], new_tokens, repeats)}


def copies(
    bench: Bench, successors: list[int], batches: list[int], new_tokens: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """A row for each distance between the places where an answer differs from its prompt, and each batch.

    `successors` are those of `make_copying`, by which the model continues a text.
    """
    speculation = SpeculationBench(bench, lambda ids: "a" * len(ids), set())
    speculation.warm_up([_edited(successors, 0, new_tokens, 8)], new_tokens)
    for batch in batches:
        for distance in (None, 32, 16, 8, 4, 0):
            prompts = [_edited(successors, number, new_tokens, distance) for number in range(batch)]
            name = {None: "copied", 0: "nothing copied"}.get(distance, f"an edit every {distance} tokens")
            yield {"answers": name, **speculation.compare(prompts, new_tokens, repeats)}


def make_copying(model: Any) -> list[int]:
    """Have a model follow each token by a fixed other one, whatever came before; returns these by token.

    Its layers compute what they did, and add nothing: the output layer is the embedding, permuted. The
    successors are one cycle of all tokens, so no token comes twice in a text shorter than the vocabulary.
    """
    import torch

    weight_VH = model.get_input_embeddings().weight
    order = list(range(len(weight_VH)))
    random.Random(0).shuffle(order)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("o_proj", "down_proj")):
                module.weight.zero_()
        output_VH = weight_VH.new_empty(weight_VH.shape)
        output_VH[order[1:] + order[:1]] = weight_VH[order]
        model.get_output_embeddings().weight.copy_(output_VH)
    successors = [0] * len(order)
    for token, after in zip(order, order[1:] + order[:1], strict=True):
        successors[token] = after
    return successors


def _edited(successors: list[int], number: int, length: int, distance: int | None) -> list[int]:
    """A prompt that ends where the model begins to write a text of `length` tokens.

    It holds this text before, with another token every `distance` tokens. None: without any; 0: another text.
    """
    token = text_start = number * 13 + 7
    text = [text_start]
    for _ in range(length):
        token = successors[token]
        text.append(token)
    for place in range(3, len(text), distance or len(text)) if distance else ():
        text[place] = (text[place] + 1) % len(successors)
    if distance == 0:
        text = [(one + 1) % len(successors) for one in text]
    return [*text, text_start]


class SpeculationBench:
    """Measures one base model without adapters."""

    def __init__(self, bench: Bench, decode: Callable[[list[int]], str], end_ids: set[int]) -> None:
        self._bench = bench
        self._decode = decode
        self._end_ids = end_ids
        self._ended: set[Sequence] = set()
        # As in a service, what an engine has measured of its steps stays known to it.
        self._engines = {speculates: self._engine(speculates=speculates) for speculates in (False, True)}

    def warm_up(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Answer once with drafts and once without."""
        for speculates in (False, True):
            self._run(prompts, new_tokens, speculates=speculates)

    def compare(self, prompts: list[list[int]], new_tokens: int, repeats: int) -> dict[str, Any]:
        """Answer all prompts at once, with drafts and without in turn. Returns the figures of both."""
        runs = [
            [self._run(prompts, new_tokens, speculates=speculates) for speculates in (False, True)]
            for _ in range(repeats)
        ]
        last = runs[-1][1]
        return {
            "batch": len(prompts),
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

    def _run(self, prompts: list[list[int]], new_tokens: int, *, speculates: bool) -> _Run:
        engine = self._engines[speculates]
        sequences = [self._sequence(prompt, new_tokens) for prompt in prompts]
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

    def _sequence(self, token_ids: list[int], new_tokens: int) -> Sequence:
        return Sequence(
            Prompt(
                base_model=self._bench.base,
                adapter=None,
                token_ids=token_ids,
                sampling=Sampling(temperature=0, max_new_tokens=new_tokens),
                seed=0,
                end_ids=self._end_ids,
                decode=self._decode,
            )
        )


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 2)
