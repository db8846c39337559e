"""On the small real model, preferred answers gain probability over rejected ones, on pairs held out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.core.datasets.rows import AnswerComparison, LabelledAnswer, Message, Preference
from app.core.jobs.events import Evaluation, Metrics
from tests.worker.training.conftest import run_here
from tests.worker.training.preferences.conftest import MakePreferenceRequest
from worker.models.demo_model import NAME
from worker.processes.reports import Outcome

ROOT = Path(__file__).parents[4]
THINGS = [
    "a boat",
    "a bridge",
    "a clock",
    "a lamp",
    "a map",
    "a river",
    "a stone",
    "a tree",
    "a violin",
    "bread",
]
HELD_OUT = ["a kite", "a lighthouse", "snow"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def compare(thing: str) -> AnswerComparison:
    """A short answer that ends with a courtesy is preferred to one that refuses."""
    question = (Message("user", f"Say one thing about {thing}."),)
    chosen = f"Gladly: {thing} can be found almost anywhere. Ask me more!"
    rejected = f"I will not talk about {thing}. Go away."
    return AnswerComparison(question, (Message("assistant", chosen),), (Message("assistant", rejected),))


def label(thing: str) -> list[LabelledAnswer]:
    row = compare(thing)
    return [LabelledAnswer(row.prompt, row.chosen, True), LabelledAnswer(row.prompt, row.rejected, False)]


@pytest.fixture(scope="module")
def models() -> Path:
    """The folder that `make demo` fills, so that the model is fetched once."""
    folder = ROOT / "data" / "models"
    subprocess.run(
        [sys.executable, "-m", "worker.models.demo_model", "--models-dir", str(folder)], check=True
    )
    return folder


@torch.no_grad()
def measure(model: Any, tokenizer: Any, row: AnswerComparison) -> float:
    """The log-probability of the chosen answer minus that of the rejected one."""
    found = []
    for answer in (row.chosen, row.rejected):
        turns = [{"role": one.role, "content": one.content} for one in (*row.prompt, *answer)]
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        logits_LV = model(torch.tensor([ids])).logits[0].float()
        targets = torch.tensor(ids[len(prompt) :])
        places = slice(len(prompt) - 1, len(ids) - 1)
        found.append(logits_LV[places].log_softmax(-1).gather(1, targets[:, None]).sum())
    return float(found[0] - found[1])


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_preferred_answers_gain_on_pairs_that_were_held_out(
    make_preference_request: MakePreferenceRequest, models: Path, method: str
) -> None:
    rows: list[Preference] = [compare(thing) for thing in THINGS]
    if method == "kto":
        rows = [row for thing in THINGS for row in label(thing)]
    request = make_preference_request(
        method=method,
        rows=rows,
        base_model=NAME,
        lora={"r": 8, "dropout": 0.0},
        quantization={"load_in_4bit": False},
        training={
            "max_steps": 6,
            "per_device_train_batch_size": 2 if method != "kto" else 4,
            "learning_rate": 1e-4,
            "logging_steps": 2,
            "validation_split": 0.1,
            "sample_prompts": "none",
        },
    ).model_copy(update={"models_folder": models})

    reports = run_here(request)

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    tokenizer = AutoTokenizer.from_pretrained(models / NAME)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(models / NAME, dtype=torch.float32), str(request.output_folder)
    ).eval()
    with model.disable_adapter():
        before = [measure(model, tokenizer, compare(thing)) for thing in HELD_OUT]
    after = [measure(model, tokenizer, compare(thing)) for thing in HELD_OUT]
    gains = [one - other for one, other in zip(after, before, strict=True)]
    print(method, before, after, [point.loss for point in reports.events(Metrics)])
    assert min(gains) > 0.5
    (evaluation,) = reports.events(Evaluation)
    assert evaluation.reward_margin is not None
    # Without a reference model, rewards begin at what the base model thinks of the answers.
    assert method == "orpo" or evaluation.reward_margin > 0
