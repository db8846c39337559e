"""Previewed rows compared with the rows that training reads."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import (
    AnswerComparison,
    Completion,
    Conversation,
    LabelledAnswer,
    Message,
    PlainText,
    Row,
)
from app.core.engine.preflight import Preview, PreviewRequest
from tests.tiny_model import NAME
from tests.worker.preflight.conftest import Store, chat, make_rows
from tests.worker.templates.test_families import published
from worker.models.files import description
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.preview import run_preview
from worker.preflight.token_text import token_texts
from worker.templates.preference_tokens import (
    ComparisonTokens,
    LabelledTokens,
    encode_preference,
    is_learned,
    truncate,
)
from worker.templates.token_rows import IGNORED, format_rows

ROWS: list[Row] = [
    chat("How do I cancel a job?"),
    Completion("Read its events", " and the adapter."),
    PlainText("Send POST to the jobs endpoint. 你好 🙂"),
]


@pytest.fixture
def preview(store: Store, environment: PreflightEnvironment) -> Any:
    def make(rows: list[Row], **fields: Any) -> Preview:
        defaults: dict[str, Any] = {"base_model": NAME, "limit": 10, "assistant_only_loss": False}
        return run_preview(PreviewRequest(dataset=store(rows), **{**defaults, **fields}), environment)

    return make


@pytest.mark.parametrize("assistant_only", [False, True])
@pytest.mark.parametrize("max_length", [None, 16])
def test_tokens_and_marks_are_those_of_training(
    preview: Any, tokenizer: PreTrainedTokenizerBase, assistant_only: bool, max_length: int | None
) -> None:
    shown = preview(ROWS, assistant_only_loss=assistant_only, max_seq_length=max_length).data
    numbered = [(10 * number, row) for number, row in enumerate(ROWS, start=1)]
    trained = format_rows(numbered, tokenizer, assistant_only=assistant_only, max_length=max_length or 256)

    by_line = {row.line: row for row in shown}
    for row in trained.rows:
        tokens = by_line[row.line].tokens
        assert [token.id for token in tokens] == row.input_ids
        assert [token.trained for token in tokens] == [label != IGNORED for label in row.labels]
    assert [row.line for row in shown if row.truncated] == trained.cut_lines


PAIR = AnswerComparison(
    chat("How do I cancel a job?").messages[:1],
    (Message("assistant", "Send POST to the jobs endpoint. 🙂"),),
    (Message("assistant", "No idea."),),
)
PREFERENCES: list[Row] = [PAIR, LabelledAnswer("Read its events", " and the adapter.", False)]


@pytest.mark.parametrize("max_length", [256, 60, 8])
def test_answers_of_preferences_are_shown_after_their_prompt_as_they_are_learned(
    preview: Any, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    shown = preview(PREFERENCES, max_seq_length=max_length).data

    encoded = [
        encode_preference(10 * number, row, tokenizer) for number, row in enumerate(PREFERENCES, start=1)
    ]
    pair, labelled = (truncate(one.tokens, max_length) for one in encoded)
    assert isinstance(pair, ComparisonTokens)
    assert isinstance(labelled, LabelledTokens)
    for row, tokens, answers in (
        (shown[0], pair, {"chosen": pair.chosen_labels, "rejected": pair.rejected_labels}),
        (shown[1], labelled, {"completion": labelled.completion_labels}),
    ):
        assert [token.id for token in row.tokens] == tokens.prompt_ids
        assert not any(token.trained for token in row.tokens)
        for answer in row.answers:
            learned = [token.id if token.trained else IGNORED for token in answer.tokens]
            assert learned == answers[answer.name]
        assert row.truncated is (tokens not in [one.tokens for one in encoded])
        leaves_out = any("a job leaves this row out" in notice for notice in row.notices)
        assert leaves_out is not is_learned(tokens)
    assert [answer.is_good for row in shown for answer in row.answers] == [True, False, False]
    whole = encoded[0].tokens
    assert isinstance(whole, ComparisonTokens)
    counts = [shown[0].token_count, *(answer.token_count for answer in shown[0].answers)]
    assert counts == [len(whole.prompt_ids), len(whole.chosen_ids), len(whole.rejected_ids)]


def test_the_tokens_texts_together_are_the_row_s_text(
    preview: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    for row in preview(ROWS).data:
        text = "".join(token.text for token in row.tokens)
        assert text == tokenizer.decode([token.id for token in row.tokens])


@pytest.mark.parametrize("assistant_only", [False, True])
def test_a_row_of_calls_shows_functions_calls_and_results_with_the_calls_marked(
    preview: Any, assistant_only: bool
) -> None:
    call = ToolCall(name="get_tide", arguments={"pier": "north"})
    called = Message("assistant", "", tool_calls=(call,))
    messages = (Message("user", "How high?"), called, Message("tool", "1.2 m"), Message("assistant", "High."))
    row = Conversation(messages, (FunctionTool(name="get_wind"), FunctionTool(name="get_tide")))

    (shown,) = preview([row], assistant_only_loss=assistant_only, max_seq_length=256).data

    text = "".join(token.text for token in shown.tokens)
    assert "get_wind" in text
    assert any("<tool_call>{…}</tool_call>" in notice for notice in shown.notices)
    (shown,) = preview([Conversation(messages)], assistant_only_loss=assistant_only).data
    text = "".join(token.text for token in shown.tokens)
    assert "How high?" in text
    assert "<tool_response>\n1.2 m\n</tool_response>" in text
    learned = "".join(token.text for token in shown.tokens if token.trained)
    assert '<tool_call>\n{"name": "get_tide", "arguments": {"pier": "north"}}\n</tool_call>' in learned
    assert "High." in learned
    assert not any(words in learned for words in ("How high", "1.2 m", "get_wind"))


def test_the_last_token_of_a_character_has_its_text(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = token_texts(tokenizer, tokenizer("🙂!")["input_ids"])

    assert texts == ["", "", "", "🙂", "!"]


def test_pages_follow_each_other(preview: Any) -> None:
    rows = make_rows(5)

    first = preview(rows, limit=2)
    second = preview(rows, limit=2, after=first.next)
    third = preview(rows, limit=2, after=second.next)

    assert [[row.line for row in page.data] for page in (first, second, third)] == [[10, 20], [30, 40], [50]]
    assert (first.next, second.next, third.next) == (20, 40, None)
    assert preview(rows, after=50).data == []


def test_a_row_that_the_template_refuses_says_why(
    preview: Any, environment: PreflightEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}x"
    tokenizer = description.load_tokenizer(environment.models_folder / NAME)
    tokenizer.chat_template = template
    monkeypatch.setattr(description, "load_tokenizer", lambda folder: tokenizer)
    system = Conversation((Message("system", "Be kind."), *chat("Hello?").messages))

    refused, fine = preview([system, chat("Hello?")]).data

    assert refused.problem is not None
    assert "no system turns" in refused.problem
    assert (refused.tokens, fine.problem) == ([], None)


def test_what_the_template_leaves_out_is_told_of_each_row(
    preview: Any, environment: PreflightEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = description.load_tokenizer(environment.models_folder / NAME)
    tokenizer.chat_template = published("qwen3")
    monkeypatch.setattr(description, "load_tokenizer", lambda folder: tokenizer)
    thought = "<think>\nAdd one.\n</think>"
    thinking = chat("0+1?", thought + "\n\n1").messages

    several, single = preview([Conversation(thinking * 2), Conversation(thinking)]).data

    assert several.notices == [
        f"The chat template leaves out {len(thought)} characters of message 2: {thought!r}."
    ]
    assert single.notices == []
    assert "Add one." in "".join(token.text for token in several.tokens)
