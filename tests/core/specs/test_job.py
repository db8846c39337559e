"""What a job spec accepts, and the recipe's defaults."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.specs.job import JobSpec
from tests.factories import make_spec


def test_the_defaults_are_the_reference_recipe() -> None:
    spec = make_spec()
    assert (spec.lora.r, spec.lora.alpha, spec.lora.dropout) == (64, 16, 0.1)
    assert (spec.training.optim, spec.training.learning_rate) == ("paged_adamw_32bit", 2e-4)
    assert (spec.training.max_grad_norm, spec.training.group_by_length) == (0.3, True)
    assert spec.quantization.bnb_4bit_quant_type == "nf4"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora", {"r": 0}),
        ("lora", {"dropout": 1}),
        ("lora", {"rank": 8}),
        ("lora", {"target_modules": []}),
        ("lora", {"target_modules": [""]}),
        ("lora", {"target_modules": "q_proj|v_proj"}),
        ("training", {"learning_rate": -1}),
        ("training", {"max_steps": 0}),
        ("training", {"fp16": True, "bf16": True}),
        ("training", {"early_stopping_patience": 2}),
        ("training", {"eval_steps": 5}),
        ("training", {"optim": "magic"}),
        ("training", {"validation_split": 1}),
        ("training", {"per_device_train_batch_size": 0}),
        ("continue_from", "x" * 401),
        ("quantization", {"bnb_4bit_quant_type": "int4"}),
        ("base_model", "../etc/passwd"),
        ("base_model", "a/b/c"),
        ("base_model", ".hidden"),
        ("name", "a/b"),
        ("surprise", 1),
    ],
)
def test_invalid_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        make_spec(**{field: value})


def test_a_spec_survives_the_database() -> None:
    spec = make_spec(lora={"target_modules": ["q_proj"]}, training={"validation_split": 0.1, "eval_steps": 5})
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_validation_dataset_allows_early_stopping_and_excludes_a_split() -> None:
    early = {"eval_steps": 5, "early_stopping_patience": 2}
    assert make_spec(validation_dataset="ds_1", training=early).training.eval_steps == 5
    with pytest.raises(ValidationError, match="exclude each other"):
        make_spec(validation_dataset="ds_1", training={"validation_split": 0.1})
    with pytest.raises(ValidationError, match=r"training\.early_stopping_patience needs rows"):
        make_spec(training=early)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        ("{{ messages\n| sideways }}", "line 2: there is no filter 'sideways'"),
        ("{{ messages is purple }}", "there is no test 'purple'"),
        ("Hello", "never uses `messages`"),
        ("{{ messages }}{% generation %}", "line 1"),
        ("{{ messages }}{{" + "(" * 5000, "nested too deeply"),
        ("{{ messages }}{{ 1" + "+1" * 5000 + "}}", "nested too deeply"),
        ("{{ messages }}{{ " + "1" * 5000 + " }}", "too many digits"),
        ("{{ messages }}" + " " * 40_000, "at most 32768 characters"),
    ],
)
def test_a_chat_template_that_can_not_be_read_is_refused(template: str, words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        make_spec(chat_template=template)


def test_constants_of_a_chat_template_are_not_computed_where_it_is_checked() -> None:
    """To compile it would take all memory: the worker does, within limits."""
    assert make_spec(chat_template="{{ messages }}{{ 'x' * (10 ** 12) }}").chat_template


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
        "{% else %}{% break %}{% endif %}{% endfor %}",
        # It is parsed and never run: neither the API's memory nor its time is at stake.
        "{{ messages }}{{ 'a' * 10 ** 12 }}{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_readable_chat_template_is_taken_as_it_is(template: str) -> None:
    assert make_spec(chat_template=template).chat_template == template
