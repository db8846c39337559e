"""Which format the answer to a request has, and what of it is to be parsed."""

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from app.core.engine.messages import GenerateRequest
from worker.inference.answers.answer_text import ParsedFormat
from worker.inference.answers.families import LIBRARY_TEMPLATE, find_format
from worker.inference.answers.parser import AnswerFormat
from worker.templates import renderer


def find_answer_format(tokenizer: PreTrainedTokenizerBase) -> AnswerFormat:
    """The format of answers to prompts that this tokenizer's chat template renders."""
    return find_format(renderer.template_of(tokenizer) or LIBRARY_TEMPLATE)


def end_ids_of_answers(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> set[int]:
    """Those of the end tokens that end an answer, not only a part of one."""
    inner = find_answer_format(tokenizer).inner_ends
    return set(end_ids) - {tokenizer.convert_tokens_to_ids(token) for token in inner}


def find_parsed_format(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, rendered: str
) -> ParsedFormat | None:
    """How to parse the answer to a rendered prompt; None where it can hold nothing but text."""
    answer_format = find_answer_format(tokenizer)
    offered = request.tools.offered if request.tools else []
    if not offered and not answer_format.has_thoughts:
        return None
    special = {
        token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return ParsedFormat(
        answer_format,
        functions={function.name: function for function in offered},
        is_parallel=request.tools is None or request.tools.parallel,
        is_thinking=answer_format.is_thinking_after(rendered),
        markers={special[marker]: marker for marker in answer_format.markers if marker in special},
    )
