"""Column maps that are guessed from names and first values."""

import json
from typing import Any

import pytest

from app.core.datasets.column_maps.guesses import guess_column_maps

ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def guessed(record: dict[str, Any]) -> list[dict[str, str]]:
    return [guess.column_map for guess in guess_column_maps(list(record), [record])]


@pytest.mark.parametrize(
    ("record", "column_map"),
    [
        ({"question": "q", "answer": "a"}, {"instruction": "question", "output": "answer"}),
        ({"id": "7", "Answer": "a", "User-Prompt": "q"}, {"instruction": "User-Prompt", "output": "Answer"}),
        ({"Frage": "q", "Antwort": "a"}, {"instruction": "Frage", "output": "Antwort"}),
        (
            {"question": "q", "context": "c", "response": "a", "system_prompt": "s"},
            {"instruction": "question", "output": "response", "input": "context", "system": "system_prompt"},
        ),
        ({"dialogue": [ASKED, ANSWERED], "title": "t"}, {"messages": "dialogue"}),
        ({"turns": json.dumps([ASKED, ANSWERED])}, {"messages": "turns"}),
        ({"log": [{"from": "human", "value": "q"}], "id": "1"}, {"messages": "log"}),
        ({"article": "t", "n": 3}, {"text": "article"}),
        ({"body": "t", "title": "q"}, {"text": "body"}),
        (
            {"prompt": "q", "chosen": "a", "rejected": "r"},
            {"instruction": "prompt", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED]},
            {"chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [ANSWERED]},
            {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {
                "question": "q",
                "chosen_model": "m",
                "chosen_answer": "a",
                "rejected_answer": "r",
                "system": "s",
            },
            {
                "instruction": "question",
                "system": "system",
                "chosen": "chosen_answer",
                "rejected": "rejected_answer",
            },
        ),
        (
            {"query": "q", "preferred": ANSWERED, "dispreferred": ANSWERED},
            {"prompt": "query", "chosen": "preferred", "rejected": "dispreferred"},
        ),
        (
            {"question": "q", "answer": "a", "label": "true"},
            {"instruction": "question", "output": "answer", "label": "label"},
        ),
        ({"question": "q", "answer": "a", "label": "spam"}, {"instruction": "question", "output": "answer"}),
    ],
)
def test_the_likeliest_map_comes_first(record: dict[str, Any], column_map: dict[str, str]) -> None:
    assert guessed(record)[0] == column_map


def test_a_pair_may_also_be_a_completion() -> None:
    assert guessed({"question": "q", "answer": "a"})[1] == {"prompt": "question", "completion": "answer"}


@pytest.mark.parametrize(
    "record",
    [
        {"a1": 1, "b": 2},
        {"x": "1", "y": "2", "z": "3"},
        {"answer": ["a", "b"], "question": "q", "k": "v"},
        {"question": "q", "rejected": "r", "n": "1"},
        {"data": [{"a": 1}]},
        {},
    ],
)
def test_nothing_is_guessed_where_nothing_is_likely(record: dict[str, Any]) -> None:
    assert guessed(record) == []


def test_the_chosen_answers_alone_come_after_the_comparison() -> None:
    maps = guessed({"prompt": "q", "chosen": "a", "rejected": "r"})
    assert maps[1] == {"instruction": "prompt", "output": "chosen"}


def test_names_alone_are_enough_where_there_are_no_records() -> None:
    maps = [guess.column_map for guess in guess_column_maps(["question", "answer"], [])]
    assert maps[0] == {"instruction": "question", "output": "answer"}
