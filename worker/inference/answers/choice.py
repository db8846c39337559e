"""Which format the answer to a request has, and what of it is to be parsed."""

import json
from dataclasses import replace
from typing import cast
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from app.core.chat.tools import ToolCall
from app.core.engine.messages import ChatMessage, GenerateRequest
from app.core.errors import InvalidRequest
from worker.inference.answers.answer_text import ParsedFormat
from worker.inference.answers.families import LIBRARY_TEMPLATE, find_format
from worker.inference.answers.grammar import AnswerRules, arguments_schema, write_grammar
from worker.inference.answers.parser import AnswerFormat
from worker.inference.sampling.grammars import GrammarSchema, GrammarSource, LarkGrammar
from worker.templates import renderer

# Finding a format takes several renderings, too long for each request.
_FORMATS: WeakKeyDictionary[PreTrainedTokenizerBase, dict[bool, ParsedFormat]] = WeakKeyDictionary()
_QUESTION, _CALLED = "sample_question", "sample_function"


def find_answer_format(tokenizer: PreTrainedTokenizerBase, *, has_functions: bool = True) -> AnswerFormat:
    """The format of answers to prompts that this tokenizer's chat template renders."""
    return _known_format(tokenizer, has_functions).format


def _known_format(tokenizer: PreTrainedTokenizerBase, has_functions: bool) -> ParsedFormat:
    """The format, without functions, and the special tokens that its parser has to see."""
    formats = _FORMATS.setdefault(tokenizer, {})
    if has_functions not in formats:
        added, special = _added_tokens(tokenizer)
        found = _find_format(tokenizer, frozenset(added) if has_functions else None)
        markers = {special[marker]: marker for marker in found.markers if marker in special}
        formats[has_functions] = ParsedFormat(found, markers=markers)
    return formats[has_functions]


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], dict[str, int]]:
    """The ids of all added tokens, and of those that are special, which decoding drops."""
    try:
        added = tokenizer.added_tokens_decoder.items()
    except NotImplementedError:
        # Tokenizers of Mistral's library: all that they add is special.
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        return special, special
    all_added = {token.content: token_id for token_id, token in added}
    return all_added, {token.content: token_id for token_id, token in added if token.special}


def _find_format(tokenizer: PreTrainedTokenizerBase, tokens: frozenset[str] | None) -> AnswerFormat:
    template = renderer.template_of(tokenizer)
    if template is None:
        return find_format(LIBRARY_TEMPLATE)
    if tokens is None:
        return find_format(template)
    return find_format(template, call=_render_call(tokenizer), tokens=tokens)


def _render_call(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A call as the chat template writes it; None where it writes none."""
    call = ToolCall(name=_CALLED, arguments={"key": "value"}, id="abcdefghi")
    turns = [
        ChatMessage(role="user", content=_QUESTION),
        ChatMessage(role="assistant", content="", tool_calls=[call]),
    ]
    try:
        prompt = renderer.render(tokenizer, turns[:1], add_generation_prompt=True)
        text = renderer.render(tokenizer, turns, add_generation_prompt=False)
    except InvalidRequest:
        return None
    answer = text.removeprefix(prompt) if text.startswith(prompt) else text.rpartition(_QUESTION)[2]
    return answer if _CALLED in answer else None


def find_inner_end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The end tokens that end only a part of an answer to a prompt that the chat template renders."""
    inner = find_answer_format(tokenizer, has_functions=False).inner_ends
    return frozenset(cast(list[int], tokenizer.convert_tokens_to_ids(list(inner))))


def find_parsed_format(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, rendered: str
) -> ParsedFormat | None:
    """How to parse the answer to a rendered prompt; None where it can hold nothing but text."""
    offered = request.tools.offered if request.tools else []
    known = _known_format(tokenizer, bool(offered))
    if not offered and not known.format.has_thoughts:
        return None
    return replace(
        known,
        functions={function.name: function for function in offered},
        is_parallel=request.tools is None or request.tools.allows_many,
        is_thinking=known.format.is_thinking_after(rendered),
    )


def find_grammar(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, rendered: str | None
) -> GrammarSource | None:
    """The grammar that the answer must match; None where it may be any text.

    With functions and a schema the answer is either calls or JSON of the schema.
    """
    offered = request.tools.offered if request.tools else []
    must_call = request.tools is not None and request.tools.must_call
    schema = None if must_call else request.output_schema
    if schema is None and not must_call and not any(function.strict for function in offered):
        return None
    if rendered is None:
        return schema
    answer_format = find_answer_format(tokenizer, has_functions=bool(offered))
    if schema is not None and not offered and not answer_format.has_thoughts:
        return schema
    rules = AnswerRules(
        functions=offered,
        must_call=must_call,
        is_parallel=request.tools is None or request.tools.allows_many,
        schema=schema,
        is_thinking=answer_format.is_thinking_after(rendered),
        may_think=answer_format.may_think_after(rendered),
    )
    schemas = [
        GrammarSchema(
            json.dumps(arguments_schema(function)),
            strict=function.strict,
            owner=f"The parameters of the function {function.name!r}",
            param="tools",
        )
        for function in offered
    ]
    if schema is not None:
        schemas.append(
            GrammarSchema(
                schema.source, schema.strict, owner="The schema of the answer", param="response_format"
            )
        )
    added, _special = _added_tokens(tokenizer)
    return LarkGrammar(write_grammar(answer_format, rules, added.get), tuple(schemas))
