"""The check that serving renders training's prompts, also where tokens depend on the text that follows."""

import copy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row
from app.core.errors.jobs import TemplateMismatch
from worker.templates.prompt_check import check_prompts
from worker.templates.token_rows import IGNORED, Sample, format_rows

CHAT = Conversation((Message("user", "How?"), Message("assistant", "So.")))
# As in Alpaca: two newlines before the answer.
ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ message['content'] + '\\n### Response:\\n\\n' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def sample(row: Row, tokenizer: PreTrainedTokenizerBase) -> Sample:
    return format_rows([(7, row)], tokenizer, assistant_only=True, max_length=256).samples[0]


def make_gpt2_like() -> PreTrainedTokenizerFast:
    """Two newlines are one token at the end of a text, and two where a word follows, as in GPT-2."""
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**letters, "ĊĊ": len(letters)}, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.chat_template = ALPACA
    return tokenizer


@pytest.mark.parametrize("assistant_only", [True, False])
def test_a_row_begins_with_the_tokens_of_its_prompt(assistant_only: bool) -> None:
    tokenizer = make_gpt2_like()
    alone = tokenizer("How?\n### Response:\n\n")["input_ids"]
    assert tokenizer("How?\n### Response:\n\nSo.")["input_ids"][: len(alone)] != alone

    formatted = format_rows([(1, CHAT)], tokenizer, assistant_only=assistant_only, max_length=256)

    assert formatted.rows[0].input_ids[: len(alone)] == alone
    learned = [label for label in formatted.rows[0].labels[len(alone) :] if label != IGNORED]
    assert tokenizer.convert_ids_to_tokens(learned) == ["S", "o", ".", "<end>"]
    check_prompts(formatted.samples, tokenizer)


@pytest.mark.parametrize("row", [CHAT, Completion("How? ", "So."), PlainText("So.")])
def test_rows_of_every_kind_pass(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    check_prompts([sample(row, tokenizer)], tokenizer)


def test_a_row_cut_within_its_prompt_passes(tokenizer: PreTrainedTokenizerBase) -> None:
    formatted = format_rows([(1, CHAT)], tokenizer, assistant_only=False, max_length=5)

    check_prompts(formatted.samples, tokenizer)


def test_another_template_is_found_out_and_both_sides_are_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    trained = sample(CHAT, tokenizer)
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].upper()"
    )

    with pytest.raises(TemplateMismatch, match=r"Line 7: at token \d+ .* 'HOW\?.*'How\?"):
        check_prompts([trained], changed)


def test_a_template_that_refuses_the_prompt_is_a_mismatch(tokenizer: PreTrainedTokenizerBase) -> None:
    trained = sample(CHAT, tokenizer)
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"

    with pytest.raises(TemplateMismatch, match="Line 7: serving refuses its prompt"):
        check_prompts([trained], changed)


def test_a_generation_prompt_that_training_never_saw_is_a_mismatch(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    polite = copy.deepcopy(tokenizer)
    polite.chat_template = tokenizer.chat_template.replace("assistant\\n'", "assistant\\nSure. '")

    with pytest.raises(TemplateMismatch, match=r"Line 1: .*Sure\. ', the whole: .*So\."):
        format_rows([(1, CHAT)], polite, assistant_only=False, max_length=256)
