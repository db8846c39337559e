"""Checks that serving renders prompts to the tokens that training used. Knows no torch."""

from collections.abc import Sequence
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Completion, Conversation, PlainText, Row, as_example
from app.core.errors import InvalidRequest
from app.core.errors.jobs import TemplateMismatch
from worker.templates.renderer import encode_plain, encode_rendered, render
from worker.templates.token_rows import Sample
from worker.templates.training_text import PROMPT_HINT

_SHOWN_TOKENS = 12


def check_prompts(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, *, moment: datetime | None = None
) -> None:
    """Render each sample's prompt as in serving and compare it with the beginning of the row's tokens.

    `moment` is the one that the rows were rendered at.

    Raises TemplateMismatch at the first token that differs.
    """
    for sample in samples:
        line, trained_ids = sample.tokens.line, sample.tokens.input_ids
        try:
            served_ids = render_prompt(sample.row, tokenizer, moment=moment)
        except InvalidRequest as error:
            raise TemplateMismatch(
                f"Line {line}: serving refuses its prompt: {error.message}", hint=PROMPT_HINT
            ) from error
        pairs = zip(served_ids, trained_ids, strict=False)  # a row may be cut within its prompt
        position = next((index for index, (served, trained) in enumerate(pairs) if served != trained), None)
        if position is not None:
            shown = [
                tokenizer.decode(ids[position : position + _SHOWN_TOKENS])
                for ids in (served_ids, trained_ids)
            ]
            common = tokenizer.decode(trained_ids[max(0, position - _SHOWN_TOKENS) : position])
            after = f", after {common!r}" if common else ""
            raise TemplateMismatch(
                f"Line {line}: at token {position + 1} of the prompt serving says {shown[0]!r}, where "
                f"training said {shown[1]!r}{after}.",
                hint=PROMPT_HINT,
            )


def render_prompt(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, moment: datetime | None = None
) -> list[int]:
    """The token ids of the row's prompt as in serving; of the whole text for plain text.

    A date in the prompt is the moment's, today's by default.
    """
    match as_example(row):
        case Conversation(messages=[_]):
            return []
        case Conversation(messages, tools):
            text = render(tokenizer, messages[:-1], add_generation_prompt=True, moment=moment, tools=tools)
            return encode_rendered(tokenizer, text)
        case Completion(prompt):
            return encode_plain(tokenizer, prompt)
        case PlainText(text):
            return encode_plain(tokenizer, text)
