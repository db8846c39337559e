"""Two base models on one GPU: the second is loaded and its graphs captured while the first makes tokens."""

import shutil
from pathlib import Path

import pytest

from app.core.engine.messages import BaseModelRef, Finished
from app.core.engine.sampling import Sampling
from app.core.specs.job import QuantizationSpec
from tests.worker.engine_process import engine_request
from tests.worker.inference.fakes import Mailbox
from worker.inference.batching.prompt import Prompt
from worker.inference.batching.scheduler import Scheduler
from worker.inference.batching.sequence import Sequence
from worker.inference.engine import Engine
from worker.inference.loading import load_runner
from worker.models.device import find_device


@pytest.fixture
def two_models(models_folder: Path) -> Path:
    shutil.copytree(models_folder / "tiny-llama", models_folder / "other-llama", dirs_exist_ok=True)
    return models_folder


def new_sequence(name: str, *, load_in_4bit: bool = False) -> Sequence:
    return Sequence(
        Prompt(
            base_model=BaseModelRef(name=name, quantization=QuantizationSpec(load_in_4bit=load_in_4bit)),
            adapter=None,
            token_ids=list(range(20, 40)),
            sampling=Sampling(temperature=0, max_new_tokens=200),
            seed=0,
            end_ids=(),
            decode=lambda ids: "".join(chr(ord("a") + index % 26) for index in ids),
        )
    )


def answer(folder: Path, *sequences: Sequence, max_base_models: int, weights: str = "auto") -> Engine:
    """Submit the sequences one by one while the others run, until all have ended."""
    request = engine_request(
        folder, max_rows=8, cache_share=0.02, max_base_models=max_base_models, weights=weights
    )
    device, mail = find_device(), Mailbox()
    scheduler = Scheduler(max_waiting=9, adapter_slot_count=8, max_base_models=max_base_models)
    engine = Engine(lambda base: load_runner(request, device, base), mail.deliver, scheduler)
    for sequence in sequences:
        engine.submit(sequence)
        engine.step()
    while not all(map(mail.has_ended, sequences)):
        engine.step()
    assert {type(mail.end(sequence)) for sequence in sequences} == {Finished}
    return engine


def test_tokens_are_the_same_while_another_base_model_is_loaded_and_captured(two_models):
    alone = new_sequence("tiny-llama")
    answer(two_models, alone, max_base_models=1)
    first, second = new_sequence("tiny-llama"), new_sequence("other-llama")
    engine = answer(two_models, first, second, max_base_models=2)

    assert first.token_ids == second.token_ids == alone.token_ids
    assert len(engine.state.bases) == 2


def test_packed_weights_are_served(two_models):
    engine = answer(
        two_models, new_sequence("tiny-llama", load_in_4bit=True), max_base_models=1, weights="4bit"
    )

    assert [base.weight_bits for base in engine.state.bases] == [4]
