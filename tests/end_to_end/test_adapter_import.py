"""A PEFT folder imported into the whole stack answers as PEFT does, and so does its download."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.adapter_archives import zipped_folder
from tests.end_to_end.box import Box, running_box
from tests.tiny_model import NAME
from tests.worker.inference.conftest import ADAPTERS, peft_warnings_ignored, save_adapter

pytestmark = pytest.mark.slow

PROMPT = "How do I cancel a job?"
NEW_TOKENS = 24


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with running_box(tmp_path) as box:
        box.start_worker()
        yield box


def answer(box: Box, **who: str) -> str:
    body = {"prompt": PROMPT, "temperature": 0, "max_new_tokens": NEW_TOKENS, **who}
    return str(box.get_good(box.client.post("/generate", json=body))["text"])


def peft_answer(model_folder: Path, folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    with peft_warnings_ignored():
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    # Half a character at the end is held back by the engine.
    text = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text).rstrip("\N{REPLACEMENT CHARACTER}")


def test_an_imported_adapter_answers_as_peft_does(box: Box, tmp_path: Path) -> None:
    model_folder = tmp_path / "models" / NAME
    folder = save_adapter(model_folder, tmp_path / "mine", **ADAPTERS["everything"])
    found = box.import_adapter(zipped_folder(folder), name="mine")
    assert found["state"] == "ready", found
    assert answer(box, adapter="mine") == peft_answer(model_folder, folder) != answer(box, base_model=NAME)

    downloaded = box.client.get("/adapters/mine/download").content
    assert box.import_adapter(downloaded, name="again")["state"] == "ready"
    assert answer(box, adapter="again") == answer(box, adapter="mine")

    special = save_adapter(model_folder, tmp_path / "dora", r=4, use_dora=True, target_modules=["q_proj"])
    assert box.import_adapter(zipped_folder(special), name="special")["state"] == "ready"
    assert answer(box, adapter="special") == peft_answer(model_folder, special) != answer(box, adapter="mine")

    other = AutoModelForCausalLM.from_pretrained(model_folder).config
    other.hidden_size = 32
    (tmp_path / "other").mkdir()
    AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "other")
    misfit = save_adapter(tmp_path / "other", tmp_path / "misfit", **ADAPTERS["attention"])
    failed = box.import_adapter(zipped_folder(misfit), name="misfit")
    assert failed["state"] == "failed", failed
    assert "Traceback" not in box.log()
