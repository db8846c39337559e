"""Prompts of rows of every form, and those that a job names."""

from typing import Any

import pytest

from app.core.datasets.rows import read_rows
from tests.worker.training.conftest import MakeRequest
from worker.models.files import description
from worker.processes.reports import TrainingRequest
from worker.templates.token_rows import format_rows
from worker.training.samples.prompts import AnswerDecoder, SamplePrompt, find_prompts, shorten

CHAT = {
    "messages": [
        {"role": "user", "content": "How do I cancel a job?"},
        {"role": "assistant", "content": "Send POST."},
    ]
}
TURNS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Cancel?"},
        {"role": "assistant", "content": "Yes."},
    ]
}


def prompts_of(request: TrainingRequest, *, max_tokens: int = 200) -> tuple[list[SamplePrompt], Any]:
    tokenizer = description.load_tokenizer(request.models_folder / request.spec.base_model)
    with request.dataset.open("rb") as lines:
        rows = format_rows(read_rows(lines), tokenizer, assistant_only=False, max_length=256).rows
    text = AnswerDecoder(tokenizer, frozenset([tokenizer.eos_token_id]))
    return find_prompts(request, tokenizer, rows, text, max_tokens=max_tokens), tokenizer


@pytest.mark.parametrize(
    ("row", "prompt", "expected"),
    [
        (CHAT, "How do I cancel a job?", "Send POST."),
        (TURNS, "system: Be brief.\nuser: Hello\nassistant: Hi\nuser: Cancel?", "Yes."),
        ({"prompt": "Cancel a job:", "completion": " Send POST."}, "Cancel a job:", "Send POST."),
        ({"instruction": "Cancel", "input": "", "output": "Send POST."}, "Cancel", "Send POST."),
    ],
    ids=["chat", "turns", "completion", "instruction"],
)
def test_a_row_gives_its_prompt_and_its_answer(
    make_request: MakeRequest, row: dict[str, Any], prompt: str, expected: str
) -> None:
    (found,), _tokenizer = prompts_of(make_request(rows=[row]))

    assert prompt in found.text
    assert found.expected == expected


def test_the_second_half_of_a_text_is_what_is_expected(make_request: MakeRequest) -> None:
    text = "How do I cancel a job? Send POST to the jobs endpoint."

    (found,), tokenizer = prompts_of(make_request(rows=[{"text": text}]))

    assert found.expected
    assert found.text + found.expected == text.replace(" " + found.expected, found.expected)
    assert found.token_ids == tokenizer(text, add_special_tokens=True)["input_ids"][: len(found.token_ids)]


def test_the_first_three_rows_whose_prompts_fit_are_taken(make_request: MakeRequest) -> None:
    rows = [
        {"prompt": f"{'why? ' * (30 if number == 1 else 1)}{number}:", "completion": "So."}
        for number in range(6)
    ]

    found, _tokenizer = prompts_of(make_request(rows=rows), max_tokens=30)

    assert [one.text[-2:] for one in found] == ["0:", "2:", "3:"]


@pytest.mark.parametrize(
    ("rows", "begin"),
    [
        ([CHAT], "<|im_start|>user\nCancel?"),
        (
            [{"prompt": TURNS["messages"][:2], "completion": TURNS["messages"][2:3]}],
            "<|im_start|>user\nCancel?",
        ),
        ([{"prompt": "Cancel", "completion": " it."}], "Cancel?"),
        ([{"text": "a b"}], "Cancel?"),
    ],
)
def test_a_prompt_of_the_job_is_a_turn_of_a_user_or_plain_text(
    make_request: MakeRequest, rows: list[dict[str, Any]], begin: str
) -> None:
    request = make_request(rows=rows, training={"sample_prompts": ["Cancel?", "why? " * 100]})

    (found,), tokenizer = prompts_of(request)  # the other one is too long

    assert tokenizer.decode(found.token_ids).removeprefix("<|begin|>").startswith(begin)
    assert found.expected is None


def test_none_is_none(make_request: MakeRequest) -> None:
    assert prompts_of(make_request(training={"sample_prompts": "none"}))[0] == []


def test_an_event_holds_neither_long_texts_nor_control_characters() -> None:
    assert shorten("a\0b\x1b[2J\tc\r\nd") == "a\ufffdb\ufffd[2J\tc\nd"
    assert len(shorten("a" * 3000)) == 2000
    assert shorten("a" * 3000).endswith("a…")
