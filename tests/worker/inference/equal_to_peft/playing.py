"""Requests, and an engine on the tiny model that answers them while others come and go."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.core.engine.messages import BaseModelRef, Finished
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from tests.worker.inference.conftest import ADAPTERS, peft_warnings_ignored
from tests.worker.inference.fakes import Mailbox
from worker.inference.adapters.cache import CachedAdapter
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine, EngineOptions
from worker.inference.model.runner import ModelRunner
from worker.models.base_model import load_for_serving
from worker.models.device import find_device

END = 2
REQUEST_COUNT = 60
# Two and a half blocks: prompts that begin with it share two, and part of one that they must not share.
SHARED_PROMPT = tuple(range(100, 140))
BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False))


@dataclass(frozen=True)
class Request:
    prompt_ids: tuple[int, ...]
    adapter: str | None
    max_new_tokens: int
    expected: list[int]


def new_runner(models_folder: Path, *, slots: int = 4, max_rows: int = 6) -> ModelRunner:
    device = find_device()
    model = load_for_serving(models_folder / "tiny-llama", BASE.quantization, device)
    return ModelRunner(model, device, adapter_slot_count=slots, max_rows=max_rows)


def load_with_peft(models_folder: Path, adapters_folder: Path) -> PeftModel:
    first, *others = ADAPTERS
    base = AutoModelForCausalLM.from_pretrained(models_folder / "tiny-llama")
    with peft_warnings_ignored():
        model = PeftModel.from_pretrained(base, adapters_folder / first, adapter_name=first)
        for name in others:
            model.load_adapter(adapters_folder / name, adapter_name=name)
    return model


def as_sequence(
    request: Request, adapters: dict[str, CachedAdapter], sampling: Sampling | None = None
) -> Sequence:
    return Sequence(
        Prompt(
            base_model=BASE,
            adapter=adapters[request.adapter] if request.adapter else None,
            token_ids=request.prompt_ids,
            sampling=sampling or Sampling(temperature=0, max_new_tokens=request.max_new_tokens),
            seed=sampling.seed or 0 if sampling else 0,
            end_ids={END},
            decode=lambda ids: "".join(map(chr, ids)),
        )
    )


def new_engine(runner: ModelRunner, mail: Mailbox, *, slots: int = 4, speculates: bool = False) -> Engine:
    return Engine(
        lambda _: runner,
        mail.deliver,
        Scheduler(max_waiting=999, adapter_slot_count=slots),
        options=EngineOptions(speculates=speculates),
    )


def vary(runner: ModelRunner, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in chunks of a random length; steps overlap or not."""
    capacity = replace(runner.capacity, prefill_tokens_per_step=rng.choice([7, 30, 512]))
    monkeypatch.setattr(runner, "capacity", capacity)
    # As on a GPU: the next step begins before anybody has seen the tokens of the last one.
    monkeypatch.setattr(runner, "is_asynchronous", rng.random() < 0.5)


def play(
    rng: random.Random,
    runner: ModelRunner,
    adapters: dict[str, CachedAdapter],
    todo: list[Request],
    *,
    speculates: bool = False,
    arrivals: float = 0.4,
) -> dict[Sequence, Request]:
    """Submit requests and cancel some of them at random steps. Returns those that finished, by sequence."""
    mail = Mailbox()
    engine = new_engine(runner, mail, speculates=speculates)
    live: dict[Sequence, Request] = {}
    done: dict[Sequence, Request] = {}
    while todo or live:
        while todo and rng.random() < arrivals:
            request = todo.pop()
            sequence = as_sequence(request, adapters)
            live[sequence] = request
            engine.submit(sequence)
        if live and rng.random() < 0.05:
            cancelled = rng.choice(list(live))
            engine.cancel(cancelled)
            del live[cancelled]
        engine.step()
        done |= {sequence: live.pop(sequence) for sequence in list(live) if mail.has_ended(sequence)}
    assert {type(mail.end(sequence)) for sequence in done} <= {Finished}
    assert engine.running_count == 0
    assert any(sequence.accepted_count for sequence in done) == speculates
    return done
