"""Comparisons and labelled answers as token ids and labels, with the chat templates of many families."""

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import AnswerComparison, Completion, Conversation, LabelledAnswer, Message, join
from app.core.errors import InvalidRequest
from app.core.errors.jobs import NothingToLearn, TemplateMismatch
from tests.worker.templates.test_functions import (
    ALL_TEMPLATES,
    ANSWER,
    MOMENT,
    OURS,
    QUESTION,
    TOOLS,
    call,
    calls,
    result,
    tokenizer_of,
)
from worker.templates.notices import describe_rows
from worker.templates.preference_tokens import (
    ComparisonTokens,
    LabelledTokens,
    encode_preference,
    format_preferences,
)
from worker.templates.prompt_check import check_prompts
from worker.templates.renderer import encode_rendered, end_token_ids, render
from worker.templates.token_rows import IGNORED, encode_row, format_rows, hold_out

EARLIER = (Message("user", "How low is it?"), Message("assistant", "Very low."))
WORSE = Message("assistant", "No idea.")
TEXTS = AnswerComparison((*EARLIER, QUESTION), (ANSWER,), (WORSE,))
CALLED = AnswerComparison(
    (QUESTION,),
    (calls(call("north")), result("1.2 m"), ANSWER),
    (calls(call("north", "get_wind")), result("2 kn"), WORSE),
    TOOLS,
)
THOUGHT = AnswerComparison(
    (QUESTION,), (replace(ANSWER, reasoning="It rises."),), (replace(WORSE, reasoning="Who knows?"),)
)
ROWS = {"texts": TEXTS, "calls": CALLED, "thoughts": THOUGHT}
# Its prompts end with an empty thought, so that answers can't have one.
WITHOUT_THOUGHTS = "qwen3_5_nothink"


@pytest.fixture(params=[*ALL_TEMPLATES, *OURS])
def family(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return tokenizer_of(str(request.param))


@pytest.fixture(
    params=[
        (name, kind)
        for name in (*ALL_TEMPLATES, *OURS)
        for kind in ROWS
        if (name, kind) != (WITHOUT_THOUGHTS, "thoughts")
    ],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[PreTrainedTokenizerBase, AnswerComparison]:
    name, kind = request.param
    return tokenizer_of(name), ROWS[kind]


def encode(row: AnswerComparison, tokenizer: PreTrainedTokenizerBase) -> ComparisonTokens:
    tokens = encode_preference(1, row, tokenizer, moment=MOMENT).tokens
    assert isinstance(tokens, ComparisonTokens)
    return tokens


def words(labels: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


def test_each_answer_is_encoded_as_supervised_training_does(
    case: tuple[PreTrainedTokenizerBase, AnswerComparison],
) -> None:
    family, row = case
    tokens = encode(row, family)

    for side, answer in ((tokens.chosen, row.chosen), (tokens.rejected, row.rejected)):
        prompt = tuple(replace(turn, weight=0) if turn.role == "assistant" else turn for turn in row.prompt)
        alone = encode_row(join(prompt, answer, row.tools), family, assistant_only=True, moment=MOMENT)
        assert (side.input_ids, side.labels) == (alone.input_ids, alone.labels)
        assert [label for label in side.labels if label != IGNORED][-1] in end_token_ids(family, None)


def test_the_prompt_is_the_one_that_serving_renders(family: PreTrainedTokenizerBase) -> None:
    served = render(family, TEXTS.prompt, add_generation_prompt=True, moment=MOMENT)

    assert encode(TEXTS, family).prompt_ids == encode_rendered(family, served)


def test_samples_pass_the_check_of_prompts(case: tuple[PreTrainedTokenizerBase, AnswerComparison]) -> None:
    family, row = case
    formatted = format_preferences([(1, row)], family, max_length=10_000, moment=MOMENT)

    check_prompts(formatted.samples, family, moment=MOMENT)


def test_answers_are_learned_and_neither_prompts_nor_results(family: PreTrainedTokenizerBase) -> None:
    texts, called = encode(TEXTS, family), encode(CALLED, family)

    assert "1.2 m high" in words(texts.chosen_labels, family)
    assert "No idea" in words(texts.rejected_labels, family)
    assert "low" not in words(texts.chosen_labels + texts.rejected_labels, family)
    assert "low" in family.decode(texts.prompt_ids)
    chosen, rejected = words(called.chosen_labels, family), words(called.rejected_labels, family)
    assert "get_tide" in chosen
    assert "get_wind" in rejected
    assert "2 kn" not in rejected
    assert "2 kn" in family.decode(called.rejected_ids)


def test_texts_have_no_template_and_one_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = encode(AnswerComparison("Two and two", " is four", " is five"), tokenizer)

    alone = encode_row(Completion("Two and two", " is four"), tokenizer, assistant_only=False)
    assert tokens.chosen.input_ids == alone.input_ids
    assert tokens.chosen.labels == alone.labels
    assert tokenizer.decode(tokens.rejected_labels) == f" is five{tokenizer.eos_token}"


def test_only_the_assistants_turns_of_an_answer_are_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    """Conversations may part before their last answer."""
    row = AnswerComparison(
        (QUESTION,), (ANSWER, Message("user", "Sure?"), ANSWER), (WORSE, EARLIER[0], WORSE)
    )

    tokens = encode(row, tokenizer)

    assert words(tokens.chosen_labels, tokenizer) == 2 * "It is 1.2 m high.<|im_end|>"
    assert "Sure?" in tokenizer.decode(tokens.chosen_ids)


def test_a_turn_of_weight_0_is_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(CALLED, chosen=(replace(CALLED.chosen[0], weight=0), *CALLED.chosen[1:]))

    assert words(encode(row, tokenizer).chosen_labels, tokenizer) == "It is 1.2 m high.<|im_end|>"


def test_a_labelled_answer_is_an_example_with_a_label(tokenizer: PreTrainedTokenizerBase) -> None:
    row = LabelledAnswer((QUESTION,), (WORSE,), False)

    tokens = encode_preference(4, row, tokenizer, moment=MOMENT).tokens

    assert isinstance(tokens, LabelledTokens)
    alone = encode_row(Conversation((QUESTION, WORSE)), tokenizer, assistant_only=True, moment=MOMENT)
    assert (tokens.example.input_ids, tokens.example.labels) == (alone.input_ids, alone.labels)
    assert (tokens.line, tokens.label) == (4, False)


def test_a_comparison_is_two_labelled_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = encode(TEXTS, tokenizer)

    good, bad = tokens.labelled()

    assert (good.label, good.example) == (True, tokens.chosen)
    assert (bad.label, bad.example) == (False, tokens.rejected)
    assert tokens.trained_tokens == good.trained_tokens + bad.trained_tokens
    assert tokens.tokens == good.tokens + bad.tokens


def test_rows_are_cut_and_those_without_anything_to_compare_are_left_out(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    long = "word " * 40
    rows = [
        (1, AnswerComparison("p", "good", "bad")),
        (2, AnswerComparison("p", f"good {long}", "bad")),
        (3, AnswerComparison(long, "good", "bad")),
        (4, AnswerComparison("p", f"{long} good", f"{long} bad")),
        (5, LabelledAnswer(long, "good", True)),
    ]

    formatted = format_preferences(rows, tokenizer, max_length=16)

    assert [row.line for row in formatted.rows] == [1, 2]
    assert formatted.cut_lines == [2, 3, 4, 5]
    assert formatted.dropped_lines == [3, 4, 5]
    assert formatted.rows[1].tokens <= 2 * 16
    assert isinstance(formatted.rows[1], ComparisonTokens)
    assert len(formatted.rows[1].chosen.input_ids) == 16
    assert len(hold_out(formatted.rows, 0.5, 1)[1]) == 1
    with pytest.raises(NothingToLearn, match="None of the 1 rows"):
        format_preferences(rows[2:3], tokenizer, max_length=16)


def test_what_the_template_leaves_out_of_either_answer_is_noticed() -> None:
    tokenizer = tokenizer_of("deepseek_r1")
    chosen = (replace(ANSWER, content="So."), Message("user", "And?"), ANSWER)
    rejected = (replace(ANSWER, content="<think>\nHm.\n</think>\n\nSo."), Message("user", "And?"), WORSE)

    formatted = format_preferences(
        [(3, AnswerComparison((QUESTION,), chosen, rejected))], tokenizer, max_length=999
    )

    assert [line for line, _omission in formatted.omissions] == [3]
    assert any(notice.code == "template_omits" for notice in describe_rows(formatted))


def test_rows_of_another_kind_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidRequest, match="Line 2: the row compares or labels answers") as refused:
        format_rows([(2, TEXTS)], tokenizer, assistant_only=False, max_length=64)
    assert "dpo, orpo or kto" in str(refused.value.hint)

    with pytest.raises(InvalidRequest, match="Line 2: the row is neither a comparison nor"):
        format_preferences([(2, Completion("p", "c"))], tokenizer, max_length=64)


def test_thoughts_that_a_template_has_no_place_for_are_refused() -> None:
    with pytest.raises(TemplateMismatch, match="Line 1: "):
        format_preferences([(1, THOUGHT)], tokenizer_of(WITHOUT_THOUGHTS), max_length=999)


def test_a_token_that_the_model_does_not_have_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    row = AnswerComparison("p", "good", "bad<|im_end|>")

    with pytest.raises(InvalidRequest, match="Line 9: "):
        format_preferences([(9, row)], tokenizer, max_length=64, embedding_rows=3)
