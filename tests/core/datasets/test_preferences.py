"""Files of preferences as people write them for TRL, OpenAI, ms-swift and LLaMA-Factory."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.formats import AmbiguousColumns, UnknownColumns
from app.core.datasets.inspection import refuse_fields, refuse_problems
from app.core.datasets.rows import AnswerComparison, Completion, DatasetFormat, LabelledAnswer, Message
from app.core.errors.datasets import DatasetInvalid, FieldsUnused
from tests.core.datasets.outcomes import ASKED, QA, Refused, Taken, chat, check_outcome, said, sharegpt
from tests.core.datasets.uploads import inspected, parquet
from tests.factories import jsonl

Q, GOOD, BAD = said("user", "q"), said("assistant", "good"), said("assistant", "bad")
ASKS, IS_GOOD, IS_BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")
PAIR = AnswerComparison((ASKS,), (IS_GOOD,), (IS_BAD,))
TEXTS = AnswerComparison("q", "good", "bad")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = said("assistant", None, tool_calls=[{"id": "c", "function": {"name": "f", "arguments": "{}"}}])
CALLED = said("tool", "1", tool_call_id="c")


def compared(**columns: Any) -> bytes:
    return jsonl([columns])


def openai(**changed: Any) -> bytes:
    row = {
        "input": {"messages": [Q], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    }
    return jsonl([row | changed])


COMPARISONS: dict[str, tuple[bytes, Taken | Refused]] = {
    "TRL, texts": (compared(prompt="q", chosen="good", rejected="bad"), Taken(TEXTS)),
    "TRL, messages": (compared(prompt=[Q], chosen=[GOOD], rejected=[BAD]), Taken(PAIR)),
    "TRL, without a prompt": (compared(chosen=[Q, GOOD], rejected=[Q, BAD]), Taken(PAIR)),
    "TRL, a prompt that the answers repeat": (
        compared(prompt=[Q], chosen=[Q, GOOD], rejected=[Q, BAD]),
        Taken(PAIR),
    ),
    "UltraFeedback, its text is the first question": (
        compared(prompt="q", chosen=[Q, GOOD], rejected=[Q, BAD], score_chosen=8.0, rejected_model="m"),
        Taken(PAIR, ["score_chosen", "rejected_model"]),
    ),
    "UltraFeedback, another question": (
        compared(prompt="p", chosen=[Q, GOOD], rejected=[Q, BAD]),
        Refused("'chosen', 'rejected' do not begin with 'prompt', which has 'p'."),
    ),
    "conversations that part early": (
        compared(chosen=[Q, GOOD, Q, GOOD], rejected=[Q, BAD, Q, BAD]),
        Taken(AnswerComparison((ASKS,), (IS_GOOD, ASKS, IS_GOOD), (IS_BAD, ASKS, IS_BAD))),
    ),
    "HH-RLHF, texts that begin alike": (
        compared(chosen="\n\nHuman: Hi\n\nAssistant: I see", rejected="\n\nHuman: Hi\n\nAssistant: Inside"),
        Taken(AnswerComparison("\n\nHuman: Hi\n\nAssistant:", " I see", " Inside")),
    ),
    "texts that end where the other goes on": (
        compared(chosen="p: a b", rejected="p: a"),
        Taken(AnswerComparison("p:", " a b", " a")),
    ),
    "texts that begin differently": (
        compared(chosen="good", rejected="bad"),
        Refused("there is no prompt, and 'chosen', 'rejected' do not begin with the same text."),
    ),
    "conversations that begin differently": (
        compared(chosen=[Q, GOOD], rejected=[said("user", "other"), BAD]),
        Refused("are conversations that do not begin with the same prompt."),
    ),
    "a text to messages": (compared(prompt="q", chosen=[GOOD], rejected=[BAD]), Taken(PAIR)),
    "messages, answers as texts": (compared(prompt=[Q], chosen="good", rejected="bad"), Taken(PAIR)),
    "an empty prompt": (
        compared(prompt="", chosen="I see good", rejected="I see bad"),
        Refused("'prompt' is empty. Fill it in"),
    ),
    "no prompt before conversations": (
        compared(prompt=None, chosen=[Q, GOOD], rejected=[Q, BAD]),
        Taken(PAIR),
    ),
    "one answer as text": (compared(prompt=[Q], chosen=[GOOD], rejected="bad"), Taken(PAIR)),
    "a text and a conversation": (
        compared(chosen=[Q, GOOD], rejected="bad"),
        Refused("'rejected' is text, and the other is a conversation."),
    ),
    "a system prompt": (
        compared(system="s", prompt=[Q], chosen=[GOOD], rejected=[BAD]),
        Taken(AnswerComparison((Message("system", "s"), ASKS), (IS_GOOD,), (IS_BAD,))),
    ),
    "a system prompt before texts": (
        compared(system="s", prompt="q", chosen="good", rejected="bad"),
        Refused("'system' (a system prompt) in 1 of 1 rows"),
    ),
    "LLaMA-Factory, Alpaca": (
        compared(instruction="q", input="", chosen="good", rejected="bad"),
        Taken(PAIR),
    ),
    "LLaMA-Factory, ShareGPT": (
        compared(
            conversations=[{"from": "human", "value": "q"}],
            chosen={"from": "gpt", "value": "good"},
            rejected={"from": "gpt", "value": "bad"},
        ),
        Taken(PAIR),
    ),
    "LLaMA-Factory, a text as conversations": (
        compared(conversations="q", chosen="good", rejected="bad"),
        Refused("'conversations' must be a list of messages"),
    ),
    "ms-swift": (chat(Q, GOOD, rejected_response="bad"), Taken(PAIR)),
    "ms-swift, messages": (chat(Q, GOOD, rejected_messages=[Q, BAD]), Taken(PAIR)),
    "ms-swift, an answer of one message": (chat(Q, GOOD, rejected_response=BAD), Taken(PAIR)),
    "ms-swift, no answer": (chat(Q, rejected_response="bad"), Refused("must end with the preferred answer")),
    "ms-swift, a question last": (
        chat(Q, GOOD, Q, rejected_response="bad"),
        Refused("must end with the preferred answer"),
    ),
    "ms-swift, images of the rejected answer": (
        chat(Q, GOOD, rejected_response="bad", rejected_images=["i"]),
        Refused("'rejected_images' (images, video or sound)"),
    ),
    "OpenAI": (openai(), Taken(PAIR, ["input.parallel_tool_calls"])),
    "OpenAI, calls": (
        openai(input={"messages": [Q], "tools": [TOOL]}, preferred_output=[CALL, CALLED, GOOD]),
        Taken(
            AnswerComparison(
                (ASKS,),
                (
                    Message("assistant", "", tool_calls=(ToolCall(id="c", name="f", arguments={}),)),
                    Message("tool", "1", tool_call_id="c"),
                    IS_GOOD,
                ),
                (IS_BAD,),
                (FunctionTool(name="f", description="", parameters={"type": "object", "properties": {}}),),
            )
        ),
    ),
    "OpenAI, no messages": (openai(input={"tools": []}), Refused("'input' has no 'messages'.")),
    "OpenAI, a text": (openai(input="q"), Refused("'input' must be an object with 'messages', found text.")),
    "OpenAI, no output": (openai(preferred_output=[]), Refused("'preferred_output' must be a list of")),
    "CSV, texts": (b"prompt,chosen,rejected\nq,good,bad\n", Taken(TEXTS)),
    "CSV, messages": (
        b'prompt,chosen,rejected\nq,"[{""role"": ""assistant"", ""content"": ""good""}]",bad\n',
        Taken(PAIR),
    ),
    "Parquet": (
        parquet(
            "SELECT [{'role': 'user', 'content': 'q'}] AS prompt, "
            "[{'role': 'assistant', 'content': 'good'}] AS chosen, "
            "[{'role': 'assistant', 'content': 'bad'}] AS rejected, 0.5 AS score"
        ),
        Taken(PAIR, ["score"]),
    ),
    "the same answers": (
        compared(prompt="q", chosen="good", rejected="good"),
        Refused("'chosen', 'rejected' are the same, so neither is preferred. Remove the row."),
    ),
    "the same messages": (
        compared(prompt=[Q], chosen=[GOOD], rejected=[GOOD]),
        Refused("'chosen', 'rejected' are the same"),
    ),
    "an empty answer": (compared(prompt="q", chosen="good", rejected=" "), Refused("'rejected' is empty.")),
    "an empty message": (
        compared(prompt=[Q], chosen=[GOOD], rejected=[said("assistant", "")]),
        Refused("with 'rejected': message 2: 'content' is empty."),
    ),
    "null": (compared(prompt="q", chosen=None, rejected="bad"), Refused("fit no known format")),
    "several rejected answers": (
        compared(prompt="q", chosen="good", rejected=["bad", "worse"]),
        Refused("'rejected' is a list of texts. Write a row for each of them."),
    ),
    "a prompt that ends with an answer": (
        compared(prompt=ASKED, chosen=[GOOD], rejected=[BAD]),
        Refused("'prompt' must end with a message from the user, found 'assistant'."),
    ),
    "an answer that ends with a question": (
        compared(prompt=[Q], chosen=[GOOD, Q], rejected=[BAD]),
        Refused("with 'chosen': the last message must be from the assistant, found 'user'."),
    ),
    "an answer of weight 0": (
        compared(prompt=[*ASKED, Q], chosen=[GOOD | {"weight": 0}], rejected=[BAD]),
        Refused("with 'chosen': every message of the answer has the weight 0"),
    ),
    "a margin": (
        compared(prompt="q", chosen="good", rejected="bad", margin=2),
        Refused("'margin' (preferences) in 1 of 1 rows"),
    ),
    "a second rejected answer": (
        compared(prompt="q", chosen="good", rejected="bad", rejected_answer_2="worse"),
        Refused("'rejected_answer_2' (preferences)"),
    ),
}
LABELLED: dict[str, tuple[bytes, Taken | Refused]] = {
    "TRL, texts": (
        compared(prompt="q", completion="bad", label=False),
        Taken(LabelledAnswer("q", "bad", False)),
    ),
    "TRL, messages": (
        compared(prompt=[Q], completion=[GOOD], label=True),
        Taken(LabelledAnswer((ASKS,), (IS_GOOD,), True)),
    ),
    "messages": (
        chat(Q, BAD, Q, GOOD, label=1),
        Taken(LabelledAnswer((ASKS, IS_BAD, ASKS), (IS_GOOD,), True)),
    ),
    "ShareGPT, LLaMA-Factory": (
        sharegpt(("human", "q"), ("gpt", "bad"), kto_tag=False),
        Taken(LabelledAnswer((ASKS,), (IS_BAD,), False)),
    ),
    "Alpaca, LLaMA-Factory": (
        compared(instruction="q", input="", output="good", kto_tag="true"),
        Taken(LabelledAnswer((ASKS,), (IS_GOOD,), True)),
    ),
    "CSV": (b"prompt,completion,label\nq,bad,0\n", Taken(LabelledAnswer("q", "bad", False))),
    "Parquet": (
        parquet("SELECT 'q' AS prompt, 'bad' AS completion, FALSE AS label"),
        Taken(LabelledAnswer("q", "bad", False)),
    ),
    "a class": (
        compared(prompt="q", completion="c", label="spam"),
        Refused("'label' must be true for a good answer or false for a bad one, found 'spam'."),
    ),
    "a number": (
        compared(prompt="q", completion="c", label=3),
        Refused("or false for a bad one, found a number"),
    ),
    "an empty prompt": (compared(prompt="", completion="c", label=True), Refused("'prompt' is empty.")),
    "a text with a label": (compared(text="t", label=True), Refused("'label' (labels) in 1 of 1 rows")),
    "null": (chat(*ASKED, label=None), Taken(QA)),
}


@pytest.mark.parametrize(("content", "outcome"), COMPARISONS.values(), ids=COMPARISONS)
def test_a_comparison_is_learned_or_named_or_refused(content: bytes, outcome: Taken | Refused) -> None:
    check_outcome(content, outcome)


@pytest.mark.parametrize(("content", "outcome"), LABELLED.values(), ids=LABELLED)
def test_a_labelled_answer_is_learned_or_named_or_refused(content: bytes, outcome: Taken | Refused) -> None:
    check_outcome(content, outcome)


def test_every_bad_row_has_its_line_and_the_form_that_is_expected() -> None:
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "good"},
        {"prompt": "q", "chosen": "good"},
    ]
    upload = inspected(jsonl(rows))

    assert upload.found.format is DatasetFormat.COMPARISONS
    assert [problem.line for problem in upload.found.problems] == [2, 3]
    with pytest.raises(DatasetInvalid, match="'rejected' is missing") as refused:
        refuse_problems(upload.found)
    assert '"chosen": "…", "rejected": "…"' in str(refused.value.hint)


@pytest.mark.parametrize(
    ("columns", "column_map"),
    [
        (["prompt", "completion", "label"], {"prompt": "prompt", "completion": "completion"}),
        (["messages", "rejected_response"], {"messages": "messages"}),
    ],
)
def test_a_column_map_that_names_a_whole_format_reads_answers_alone(
    columns: list[str], column_map: dict[str, str]
) -> None:
    values = {"messages": ASKED, "label": True}
    upload = inspected(jsonl([{name: values.get(name, "t") for name in columns}]), column_map)

    assert upload.found.format in (DatasetFormat.PROMPT_COMPLETION, DatasetFormat.MESSAGES)
    with pytest.raises(FieldsUnused, match=f"'{columns[-1]}'") as refused:
        refuse_fields(upload.found)
    assert "not supported" not in refused.value.message
    assert "column_map" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("columns", "said_of_it"),
    [
        (["messages", "chosen", "rejected"], '{"chosen": "chosen", "rejected": "rejected"}'),
        (
            ["prompt", "completion", "chosen", "rejected"],
            '{"prompt": "prompt", "completion": "completion"} or',
        ),
    ],
)
def test_columns_of_answers_and_of_comparisons_are_refused_with_the_choices(
    columns: list[str], said_of_it: str
) -> None:
    with pytest.raises(AmbiguousColumns) as refused:
        inspected(jsonl([dict.fromkeys(columns, "t")]))
    assert said_of_it in str(refused.value.hint)


def test_a_question_that_may_be_the_prompt_is_asked_for() -> None:
    """Intel's orca_dpo_pairs: read as texts without a prompt, the answers would stand alone."""
    rows = jsonl([{"system": "s", "question": "q", "chosen": "I see good", "rejected": "I see bad"}])
    with pytest.raises(UnknownColumns, match="it is not certain that 'question' is their prompt") as refused:
        inspected(rows)
    column_map = {"instruction": "question", "chosen": "chosen", "rejected": "rejected"}
    assert json.dumps(column_map) in str(refused.value.hint)

    row = inspected(rows, column_map).rows[0][1]
    assert isinstance(row, AnswerComparison)
    assert row.prompt == (Message("system", "s"), ASKS)
    assert row.chosen == (Message("assistant", "I see good"),)


def test_the_column_called_prompt_may_have_an_answer() -> None:
    row = {"prompt": [Q, GOOD], "rejected": [Q, BAD]}
    upload = inspected(jsonl([row]), {"chosen": "prompt", "rejected": "rejected"})
    assert upload.rows == [(1, PAIR)]


def test_a_later_row_without_a_label_is_a_bad_row() -> None:
    upload = inspected(
        jsonl([{"prompt": "q", "completion": "c", "label": True}, {"prompt": "q", "completion": "c"}])
    )
    assert [problem.line for problem in upload.found.problems] == [2]
    assert "'label' is missing" in upload.found.problems[0].message


def test_answers_alone_are_learned_where_the_first_row_has_no_label_and_the_label_is_named() -> None:
    upload = inspected(
        jsonl([{"prompt": "q", "completion": "c"}, {"prompt": "q", "completion": "c", "label": True}])
    )
    assert isinstance(upload.rows[0][1], Completion)
    with pytest.raises(FieldsUnused, match=r"'label' \(labels\) in 1 of 2 rows \(line 2\)"):
        refuse_fields(upload.found)


def test_the_example_is_a_file_of_comparisons_without_a_fault() -> None:
    content = (Path(__file__).parents[3] / "examples" / "preferences.jsonl").read_bytes()
    upload = inspected(content)
    refuse_problems(upload.found)
    assert (upload.found.format, upload.found.rows) == (DatasetFormat.COMPARISONS, 140)
    assert upload.found.unused_fields == []
    assert len(content) < 100_000
