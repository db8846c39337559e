"""Which format the answer to a request has, and what of it is to be parsed."""

import json
from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from app.core.engine.messages import GenerateRequest
from worker.inference.answers.answer_text import ParsedFormat
from worker.inference.answers.families import LIBRARY_TEMPLATE, find_format
from worker.inference.answers.grammar import AnswerRules, arguments_schema, write_grammar
from worker.inference.answers.parser import AnswerFormat
from worker.inference.sampling.grammars import GrammarSchema, GrammarSource, LarkGrammar
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
        is_parallel=request.tools is None or request.tools.allows_many,
        is_thinking=answer_format.is_thinking_after(rendered),
        markers={special[marker]: marker for marker in answer_format.markers if marker in special},
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
    answer_format = find_answer_format(tokenizer)
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
    added = tokenizer.get_added_vocab()
    return LarkGrammar(write_grammar(answer_format, rules, added.get), tuple(schemas))
