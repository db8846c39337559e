"""The adapter's README: its text, its header for the Hub, and that neither has secrets or local paths."""

import json
from typing import Any

import yaml

from tests.factories import make_spec
from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, run_here
from worker.training.output.model_card import write_card


def make_card(*, facts: dict[str, object] | None = None, **spec: Any) -> str:
    return write_card(
        job="job_0",
        spec=make_spec(**spec),
        facts=facts or {},
        results={"Optimizer steps": 1200, "Training loss, at the end": 1.23456, "Evaluation loss": None},
        versions={"peft": "0.21.2"},
    )


def test_the_header_is_what_the_hub_expects() -> None:
    header = yaml.safe_load(make_card(base_model="owner/1.5").split("---")[1])

    assert (header["base_model"], header["library_name"]) == ("owner/1.5", "peft")
    assert "base_model:adapter:owner/1.5" in header["tags"]


def test_results_are_a_table_without_what_is_not_known() -> None:
    card = make_card()

    assert "| Optimizer steps | 1,200 |\n| Training loss, at the end | 1.235 |" in card
    assert "Evaluation loss" not in card


def test_only_settings_that_differ_from_the_recipe_are_shown() -> None:
    card = make_card(name="helper", training={"seed": 7, "max_steps": -1}, chat_template="{{ messages }}")

    shown = json.loads(card.split("```json")[1].split("```")[0])
    assert shown["training"] == {"seed": 7}
    assert shown["name"] == "helper"
    assert "chat_template" not in shown


def test_a_name_from_outside_does_not_break_the_page() -> None:
    card = make_card(facts={"Dataset": "rows | of\n# <script>"})

    assert "| Dataset | rows \\| of # &lt;script> |" in card


def test_how_to_use_it_here_names_the_adapter() -> None:
    assert '-d \'{"adapter": "helper", ' in make_card(name="helper")


def test_a_jobs_card_describes_the_job_and_has_no_secret(make_request: MakeRequest) -> None:
    request = make_request(
        name="story", training={"max_steps": 2, "learning_rate": 1e-2, "validation_split": 0.2}
    ).model_copy(update={"dataset_name": "support.jsonl"})

    run_here(request)

    card = (request.output_folder / "README.md").read_text()
    assert f"A LoRA adapter for `{NAME}`" in card
    assert "| Dataset | support.jsonl (SHA-256 `0000000000000000…`) |" in card
    assert "| Rows | 8 to train on, 2 to evaluate on |" in card
    assert "| Evaluation loss | " in card
    assert "the base model's own" in card
    assert "/tmp/" not in card
    assert str(request.models_folder) not in card


def test_the_method_and_its_beta_are_named() -> None:
    assert "| Learned from | comparisons of two answers, by DPO with beta 0.2 |" in make_card(
        method="dpo", dpo={"beta": 0.2}
    )
    assert "| Learned from | answers with labels, by KTO with beta 0.1 |" in make_card(method="kto")
