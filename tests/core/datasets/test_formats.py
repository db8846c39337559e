"""Finding the format that a file's columns have, and the messages where there is none."""

import pytest

from app.core.datasets.formats import (
    UnknownColumns,
    check_column_map,
    check_mapped_columns,
    choose_layout,
)
from app.core.errors.datasets import DatasetInvalid


def choose_checked_layout(columns: list[str], column_map: dict[str, str]) -> None:
    check_column_map(column_map)
    check_mapped_columns(columns, column_map)
    choose_layout(columns, column_map)


@pytest.mark.parametrize(
    ("columns", "column_map", "used"),
    [
        (["question", "answer"], {"prompt": "question", "completion": "answer"}, ["question", "answer"]),
        (["question", "completion"], {"prompt": "question"}, ["question", "completion"]),
        (["text", "messages"], {"text": "text"}, ["text"]),
        (["instruction", "output", "text"], {"instruction": "instruction"}, ["instruction", "output"]),
        (
            ["prompt", "completion"],
            {"prompt": "completion", "completion": "prompt"},
            ["completion", "prompt"],
        ),
        (["dialog", "text"], {"messages": "dialog"}, ["dialog"]),
    ],
)
def test_a_column_map_says_what_columns_mean(
    columns: list[str], column_map: dict[str, str], used: list[str]
) -> None:
    names = choose_layout(columns, column_map).names
    order = ["messages", "prompt", "completion", "text", "instruction", "output"]
    assert [names[name] for name in order if name in names] == used


@pytest.mark.parametrize(
    ("column_map", "said"),
    [
        ({"promp": "question"}, "column_map has 'promp', which is no column of any format."),
        (
            {"prompt": "question", "completion": "question"},
            "column_map uses the column 'question' more than once.",
        ),
        (
            {"prompt": "quest"},
            "column_map names 'quest', but the file's columns are 'question', 'answer', 'completion'.",
        ),
        ({"prompt": "question", "text": "answer"}, "column_map mixes columns of several formats"),
        (
            {"prompt": "completion"},
            "column_map has 'prompt' and still needs 'completion' or 'chosen', 'rejected'; the file's "
            "columns are 'question', 'answer', 'completion'.",
        ),
        (
            {"system": "question"},
            "column_map has 'system' and still needs 'messages' or 'prompt' or 'instruction', 'output' or ",
        ),
    ],
)
def test_a_wrong_column_map_is_refused(column_map: dict[str, str], said: str) -> None:
    columns = ["question", "answer", "completion"]
    with pytest.raises(DatasetInvalid) as refused:
        choose_checked_layout(columns, column_map)
    assert said in refused.value.message
    assert refused.value.param == "column_map"


@pytest.mark.parametrize(
    ("columns", "example"),
    [
        (["question", "answer", "id"], '{"instruction": "question", "output": "answer"}'),
        (["id", "Frage", "Antwort"], '{"prompt": "id", "completion": "Frage"}'),
        (["body"], '{"text": "body"}'),
    ],
)
def test_unknown_columns_are_refused_with_a_map_to_copy(columns: list[str], example: str) -> None:
    with pytest.raises(UnknownColumns, match="fit no known format") as refused:
        choose_layout(columns, {})
    assert "`messages`" in (refused.value.hint or "")
    assert example in (refused.value.hint or "")


def test_columns_of_two_formats_are_refused_with_the_choices() -> None:
    with pytest.raises(
        DatasetInvalid, match=r"fit several formats: text or instruction, output\."
    ) as refused:
        choose_layout(["instruction", "input", "output", "text"], {})
    assert refused.value.hint == (
        'Say which with column_map: {"text": "text"} or {"instruction": "instruction", "output": "output"}.'
    )


def test_many_and_long_names_are_cut_in_messages() -> None:
    with pytest.raises(UnknownColumns) as refused:
        choose_layout([f"{number}" + "x" * 1000 for number in range(100)], {})
    assert "and 80 more" in refused.value.message
    assert len(refused.value.message) < 2000
