"""The general path loads a base model as its job held it, and adapters share its weights."""

from pathlib import Path

import pytest
from bitsandbytes.nn import Linear4bit
from peft import PeftModel

from app.core.engine.messages import BaseModelRef, ServingPath
from app.core.specs.job import QuantizationSpec
from tests.tiny_model import NAME
from tests.worker.engine_process import engine_request
from tests.worker.inference.conftest import peft_warnings_ignored, save_adapter
from tests.worker.inference.fakes import Mailbox
from tests.worker.inference.general.conftest import make_sequence
from tests.worker.inference.random_models import generate
from worker.inference.adapters.cache import StoredAdapter, read_adapter
from worker.inference.batching.scheduler import Scheduler
from worker.inference.engine import Engine
from worker.inference.general.adapters import put_on
from worker.inference.general.runner import GeneralRunner
from worker.inference.loading import load_runner
from worker.models.base_model import load_model
from worker.models.device import find_device

PACKED = QuantizationSpec(bnb_4bit_use_double_quant=True)
PROMPT = [5, 6, 7, *range(20, 40)]


def load(models_folder: Path, weights: str) -> GeneralRunner:
    reference = BaseModelRef(name=NAME, quantization=PACKED, path=ServingPath.GENERAL)
    runner = load_runner(engine_request(models_folder, weights=weights, max_rows=4), find_device(), reference)
    assert isinstance(runner, GeneralRunner)
    return runner


@pytest.fixture(scope="module")
def adapter(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    folder = tmp_path_factory.mktemp("adapters") / "odd"
    save_adapter(models_folder / NAME, folder, r=4, use_dora=True, modules_to_save=["lm_head"])
    return read_adapter("odd", folder)


def answers(runner: GeneralRunner, adapter: StoredAdapter) -> list[list[int]]:
    mail = Mailbox()
    engine = Engine(lambda _: runner, mail.deliver, Scheduler(max_waiting=9, adapter_slot_count=2))
    sequences = [make_sequence(PROMPT, one) for one in (adapter, None)]
    for sequence in sequences:
        engine.submit(sequence)
    with peft_warnings_ignored():
        while not all(map(mail.has_ended, sequences)):
            engine.step()
    return [sequence.token_ids for sequence in sequences]


def test_answers_on_4_bit_weights_are_those_of_peft_on_the_model_of_the_job(
    models_folder: Path, adapter: StoredAdapter
) -> None:
    model = load_model(models_folder / NAME, PACKED, find_device()).eval()
    without = generate(model, PROMPT, 10)
    with peft_warnings_ignored():
        adapted = PeftModel.from_pretrained(model, adapter.folder).eval()
    expected = [generate(adapted, PROMPT, 10), without]

    packed = load(models_folder, "4bit")

    assert packed.weight_bits == 4
    assert answers(packed, adapter) == expected
    assert expected[0] != without


def test_a_cpu_dequantizes_once_and_gives_the_same_answers(
    models_folder: Path, adapter: StoredAdapter
) -> None:
    unpacked = load(models_folder, "auto")

    assert unpacked.weight_bits == 32
    assert answers(unpacked, adapter) == answers(load(models_folder, "4bit"), adapter)


def test_an_adapter_shares_the_4_bit_weights_of_its_base_model(
    models_folder: Path, adapter: StoredAdapter
) -> None:
    model = load_model(models_folder / NAME, PACKED, find_device()).eval()
    with peft_warnings_ignored():
        adapted = put_on(model, adapter.folder)

    own = [module for module in model.modules() if isinstance(module, Linear4bit)]
    shared = [module for module in adapted.modules() if isinstance(module, Linear4bit)]
    assert len(own) == len(shared) > 0
    for one, other in zip(own, shared, strict=True):
        assert one is not other
        assert one.weight.data_ptr() == other.weight.data_ptr()
        assert one.weight.quant_state.absmax.data_ptr() == other.weight.quant_state.absmax.data_ptr()
    assert not any("lora" in name for name, _module in model.named_modules())
