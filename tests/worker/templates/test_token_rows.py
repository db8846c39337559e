"""Rows as token ids and labels."""

import copy
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row
from app.core.errors import InvalidRequest
from app.core.errors.jobs import NothingToLearn, TemplateMismatch
from worker.processes import parallel_map
from worker.processes.parallel_map import Work
from worker.templates.token_rows import IGNORED, encode_row, format_rows, hold_out

TWO_TURNS = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "How?"),
        Message("assistant", "So. 🎉"),
        Message("user", "And then?"),
        Message("assistant", " Read  on."),
    )
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def learned(row: Row, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool = False) -> str:
    """The learned tokens as text, with | in place of tokens that are not learned."""
    encoded = encode_row(row, tokenizer, assistant_only=assistant_only)
    input_ids, labels = encoded.input_ids, encoded.labels
    assert [label for label in labels if label != IGNORED] == [
        token for token, label in zip(input_ids, labels, strict=True) if label != IGNORED
    ]
    runs: list[list[int]] = [[]]
    for label in labels:
        runs[-1].append(label) if label != IGNORED else runs.append([])
    return "|".join(tokenizer.decode(run) for run in runs if run)


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def test_assistant_only_learns_content_and_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    assert learned(TWO_TURNS, tokenizer, assistant_only=True) == "So. 🎉<|im_end|>| Read  on.<|im_end|>"


def test_assistant_only_works_for_a_template_without_a_generation_prompt(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    llama = with_template(tokenizer, LLAMA_2)
    row = Conversation(TWO_TURNS.messages[1:])

    assert learned(row, llama, assistant_only=True) == " So. 🎉 <|im_end|>|  Read  on. <|im_end|>"


def test_a_conversation_is_learned_whole_but_for_its_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in TWO_TURNS.messages], tokenize=False
    )

    assert learned(TWO_TURNS, tokenizer) == text.removeprefix("<|begin|>")


@pytest.mark.parametrize("assistant_only", [True, False])
def test_a_turn_of_weight_0_is_not_learned(tokenizer: PreTrainedTokenizerBase, assistant_only: bool) -> None:
    messages = list(TWO_TURNS.messages)
    messages[2] = Message("assistant", "So. 🎉", weight=0)

    found = learned(Conversation(tuple(messages)), tokenizer, assistant_only=assistant_only)

    assert "So." not in found
    assert found.endswith(" Read  on.<|im_end|>" + ("" if assistant_only else "\n"))
    assert ("How?" in found) is not assistant_only


def test_a_question_of_weight_0_is_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [replace(message, weight=int(message.role == "assistant")) for message in TWO_TURNS.messages]

    found = learned(Conversation(tuple(messages)), tokenizer, assistant_only=False)

    assert found == learned(TWO_TURNS, tokenizer, assistant_only=True)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    forgetful = with_template(
        tokenizer,
        "{% for message in messages %}{{ message['content'] if loop.last else '…' }}<|im_end|>{% endfor %}",
    )

    for assistant_only in (False, True):
        with pytest.raises(TemplateMismatch, match=r"Line 3: .*The prompt: .*And then\?.*the whole: .*Read"):
            format_rows([(3, TWO_TURNS)], forgetful, assistant_only=assistant_only, max_length=256)


@pytest.mark.parametrize(("weight", "words"), [(1, "leaves out message 3"), (0, None)])
def test_a_turn_that_the_template_leaves_out_can_not_be_learned(
    tokenizer: PreTrainedTokenizerBase, weight: int, words: str | None
) -> None:
    silent = with_template(
        tokenizer,
        "{% for message in messages %}{% if loop.index != 3 %}{{ message['role'] + message['content'] }}"
        "<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
    )
    messages = list(TWO_TURNS.messages)
    messages[2] = Message("assistant", "So. 🎉", weight=weight)
    row = Conversation(tuple(messages))

    if words is None:
        assert learned(row, silent, assistant_only=True) == " Read  on.<|im_end|>"
    else:
        with pytest.raises(InvalidRequest, match=words):
            encode_row(row, silent, assistant_only=True)


def test_a_completion_is_learned_without_its_prompt_and_ended(tokenizer: PreTrainedTokenizerBase) -> None:
    assert learned(Completion("How? ", "POST it."), tokenizer) == "POST it.<|im_end|>"


def test_a_completion_begins_where_the_prompt_alone_would_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """ " POST" has a token of its own, which would swallow the prompt's last space."""
    prompt_ids = tokenizer("How? ")["input_ids"]

    input_ids = encode_row(Completion("How? ", "POST it."), tokenizer, assistant_only=False).input_ids

    assert input_ids[: len(prompt_ids)] == prompt_ids


def test_plain_text_is_learned_to_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    assert learned(PlainText("How do I"), tokenizer) == tokenizer.decode(
        tokenizer("How do I<|im_end|>")["input_ids"][1:]
    )


@pytest.mark.parametrize(
    "row",
    [PlainText("<|begin|>How?<|im_end|>"), PlainText("How?"), Completion("<|begin|>How?", "So."), TWO_TURNS],
)
def test_there_is_one_beginning_token(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    begins = with_beginning(tokenizer)

    encoded = encode_row(row, begins, assistant_only=False)
    input_ids, labels = encoded.input_ids, encoded.labels

    assert input_ids.count(begins.bos_token_id) == 1
    assert input_ids[0] == begins.bos_token_id
    assert begins.eos_token_id in labels


def with_beginning(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that puts its beginning token before every text, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", changed.bos_token_id)]
    )
    return changed


def test_rows_are_cut_counted_and_dropped_when_nothing_is_left(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [(1, PlainText("How do I?")), (4, Completion("long " * 20, "So.")), (5, PlainText("job " * 20))]

    formatted = format_rows(rows, tokenizer, assistant_only=False, max_length=16)

    assert [row.line for row in formatted.rows] == [1, 5]
    assert (formatted.cut_lines, formatted.dropped_lines) == ([4, 5], [4])
    assert len(formatted.rows[1].input_ids) == 16
    assert formatted.rows[1].labels[-1] != tokenizer.eos_token_id


def test_nothing_left_to_learn_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(NothingToLearn):
        format_rows([(1, Completion("long " * 20, "So."))], tokenizer, assistant_only=False, max_length=16)


@pytest.mark.parametrize(("count", "share", "held"), [(10, 0.2, 2), (10, 0.01, 1), (2, 0.9, 1), (5, 0.0, 0)])
def test_held_out_rows_are_the_same_for_the_same_seed(
    tokenizer: PreTrainedTokenizerBase, count: int, share: float, held: int
) -> None:
    lines: list[tuple[int, Row]] = [(line, PlainText(f"job {line}")) for line in range(1, count + 1)]
    rows = format_rows(lines, tokenizer, assistant_only=False, max_length=16).rows

    train, held_out = hold_out(rows, share, seed=1)

    assert len(held_out) == held
    assert sorted(row.line for row in [*train, *held_out]) == [line for line, _row in lines]
    assert hold_out(rows, share, seed=1) == (train, held_out)


def test_one_row_can_not_be_split(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = format_rows([(1, PlainText("job"))], tokenizer, assistant_only=False, max_length=16).rows

    with pytest.raises(NothingToLearn):
        hold_out(rows, 0.5, seed=1)


def test_several_processes_encode_as_one_and_name_the_line_of_an_error(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_map, "_START_SECONDS", 0.0)
    rows: list[tuple[int, Row]] = [(line, TWO_TURNS) for line in range(1, 401)]
    work = Work(len(rows), processors=2)

    alone = format_rows(rows, tokenizer, assistant_only=True, max_length=64)
    assert format_rows(rows, tokenizer, assistant_only=True, max_length=64, work=work) == alone

    rows[350] = (351, Conversation((Message("user", "How?"),) * 2))
    refused = with_template(tokenizer, "{{ raise_exception('no') if messages[0].role == 'user' else 'x' }}")
    with pytest.raises(InvalidRequest, match="Line 351: The chat template refuses") as error:
        format_rows(rows, refused, assistant_only=False, max_length=64, work=work)
    assert error.value.hint
