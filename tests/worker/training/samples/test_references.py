"""Rows of the final evaluation: the prompt and the answer of rows of every form."""

import json
from typing import Any

import pytest

from app.core.datasets.rows import read_rows
from tests.worker.training.conftest import MakeRequest
from worker.models.files import description
from worker.processes.reports import TrainingRequest
from worker.templates.choice import adopt_function_template
from worker.templates.token_rows import format_rows
from worker.training.samples.prompts import AnswerDecoder
from worker.training.samples.references import Reference, choose_references

TOOL = {
    "type": "function",
    "function": {
        "name": "cancel",
        "parameters": {"type": "object", "properties": {"job": {"type": "string"}}},
    },
}


@pytest.mark.parametrize(
    ("row", "prompt", "expected"),
    [
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hi"},
                    {"role": "user", "content": "Cancel?"},
                    {"role": "assistant", "content": "Yes."},
                ]
            },
            "user: Cancel?",
            "Yes.",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Cancel?"},
                    {"role": "assistant", "content": "Yes.", "reasoning_content": "It runs."},
                ]
            },
            "Cancel?",
            "Yes.",
        ),
        (
            {
                "tools": [TOOL],
                "messages": [
                    {"role": "user", "content": "Cancel?"},
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c1",
                                "type": "function",
                                "function": {"name": "cancel", "arguments": json.dumps({"job": "a"})},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "c1", "content": "done"},
                    {"role": "assistant", "content": "Yes."},
                ],
            },
            'cancel({"job": "a"})\ntool: done',
            "Yes.",
        ),
        ({"prompt": "Cancel:", "completion": " Yes."}, "Cancel:", "Yes."),
        ({"text": "How do I cancel a job? Send POST to the jobs endpoint."}, "How do I", "endpoint."),
    ],
    ids=["turns", "reasoning", "functions", "completion", "text"],
)
def test_a_row_gives_its_prompt_and_its_last_answer(
    make_request: MakeRequest, row: dict[str, Any], prompt: str, expected: str
) -> None:
    (found,) = references_of(make_request(rows=[row]))

    assert prompt in found.prompt.text
    assert found.prompt.expected
    assert expected in found.prompt.expected


def test_answers_that_are_not_learned_and_prompts_that_are_too_long_are_left_out(
    make_request: MakeRequest,
) -> None:
    question, answer = {"role": "user", "content": "Cancel?"}, {"role": "assistant", "content": "Yes."}
    rows = [
        [question, answer],
        [question, answer, question, {**answer, "weight": 0}],
        [{**question, "content": "why? " * 300}, answer],
    ]

    found = references_of(make_request(rows=[{"messages": messages} for messages in rows]))

    assert [one.line for one in found] == [1]


def references_of(request: TrainingRequest) -> list[Reference]:
    tokenizer = description.load_tokenizer(request.models_folder / request.spec.base_model)
    with request.dataset.open("rb") as lines:
        rows = format_rows(read_rows(lines), tokenizer, assistant_only=False, max_length=2048).rows
    adopt_function_template(tokenizer)
    text = AnswerDecoder(tokenizer, frozenset([tokenizer.eos_token_id]))
    return choose_references(request, tokenizer, rows, text, count=20, max_tokens=1000)
