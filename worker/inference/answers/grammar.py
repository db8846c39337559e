"""Grammars of answers that must call functions, or whose calls must keep to schemas, in llguidance's Lark.

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Markers that a tokenizer has as
one token are that token, so that free text, which can't hold such tokens, ends there. Others are text that
is searched for lazily.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.core.chat.tools import FunctionTool
from app.core.engine.messages import OutputSchema
from worker.inference.answers.calls import CallWriting
from worker.inference.answers.harmony import HarmonyAnswer
from worker.inference.answers.parser import AnswerFormat, MarkedAnswer, ThoughtMarkers

TokenId = Callable[[str], int | None]

# Whitespace between two tokens of JSON: a blank, or a line break with what indents the next line. Where more
# is possible, a small model may emit blanks without end.
WHITESPACE = r"\x20|\x0D?\x0A[\x20\x09]{0,32}"
_TEXT = r"TEXT: /(.|\n)*/"
# Text that is no call although it stands where calls without a marker do.
_NO_OBJECT = r"NO_OBJECT: /(\s*[^\s{](.|\n)*)?/"
_BLANK = r"BLANK: /\s{0,8}/"
_HARMONY_TOKENS = HarmonyAnswer().markers
_HARMONY_WRITING = CallWriting(
    before_name="<|channel|>commentary to=functions.",
    before_arguments=" <|constrain|>json<|message|>",
)


@dataclass(frozen=True)
class AnswerRules:
    """What an answer must be.

    `functions`: those that it may call. `must_call`: it is nothing but calls. `schema`: where it calls none,
    it is JSON of this schema. `is_thinking`: the prompt has opened the thoughts. `may_think`: the prompt has
    not ended them either.
    """

    functions: Sequence[FunctionTool] = ()
    must_call: bool = False
    is_parallel: bool = True
    schema: OutputSchema | None = None
    is_thinking: bool = False
    may_think: bool = False


def write_grammar(answer_format: AnswerFormat, rules: AnswerRules, token_id: TokenId) -> str:
    """The grammar of an answer in this format."""
    if isinstance(answer_format, HarmonyAnswer):
        lines = _harmony(rules, _Terms(token_id, _HARMONY_TOKENS))
    else:
        assert isinstance(answer_format, MarkedAnswer)
        lines = _marked(answer_format, rules, token_id)
    return "\n".join(["%llguidance {}", *lines, _TEXT, _BLANK])


def json_options(*, strict: bool) -> dict[str, Any]:
    """How llguidance compiles a schema. `strict`: a keyword that it can't keep to is an error."""
    return {"whitespace_pattern": WHITESPACE, "lenient": not strict}


def arguments_schema(function: FunctionTool) -> dict[str, Any]:
    """The schema of a function's arguments: an object, without arguments that it does not name.

    Schemas that are put together of others keep what they say of other arguments.
    """
    schema: dict[str, Any] = {"type": "object", **(function.parameters or {"properties": {}})}
    if "properties" in schema and not schema.keys() & {
        "$ref",
        "allOf",
        "anyOf",
        "oneOf",
        "patternProperties",
    }:
        schema.setdefault("additionalProperties", False)
    return schema


class _Terms:
    """Writes text with markers in it as terms of a rule."""

    def __init__(self, token_id: TokenId, markers: Sequence[str]) -> None:
        self._token_id = token_id
        known = sorted((marker for marker in markers if token_id(marker) is not None), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, known))})") if known else None

    def text(self, text: str) -> str:
        """The terms that match this text."""
        parts = self._pattern.split(text) if self._pattern else [text]
        return " ".join(self._term(part) for part in parts if part)

    def is_token(self, marker: str) -> bool:
        """Whether the marker is one token."""
        return self._token_id(marker) is not None

    def _term(self, part: str) -> str:
        is_marker = self._pattern is not None and self._pattern.fullmatch(part)
        return f"<[{self._token_id(part)}]>" if is_marker else json.dumps(part, ensure_ascii=False)


def _json(schema: dict[str, Any], *, strict: bool) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": json_options(strict=strict)})


def _schema_rule(schema: OutputSchema) -> str:
    source = json.loads(schema.source)
    return f"json_answer: {_json(source if isinstance(source, dict) else {}, strict=schema.strict)}"


def _argument_rules(functions: Sequence[FunctionTool]) -> list[str]:
    return [
        f"arguments_{index}: {_json(arguments_schema(function), strict=function.strict)}"
        for index, function in enumerate(functions)
    ]


def _marked(answer_format: MarkedAnswer, rules: AnswerRules, token_id: TokenId) -> list[str]:
    writing, thoughts = answer_format.writing, answer_format.thoughts
    terms = _Terms(token_id, (*writing.tokens, *((thoughts.open, thoughts.close) if thoughts else ())))
    start, lines = _thoughts(thoughts, rules, terms)
    lines += _argument_rules(rules.functions)
    if rules.schema is not None:
        lines.append(_schema_rule(rules.schema))
    if not rules.functions:
        return [f"start: {start} json_answer", *lines]
    marker = writing.first_marker
    if not rules.must_call and rules.schema is None and marker is not None:
        return [f"start: {start} lazy_calls TEXT", *lines, *_lazy_calls(writing, marker, rules, terms)]
    if rules.schema is not None and marker is None:
        # llguidance does not go back to another alternative within equal text: the marker decides.
        writing = replace(writing, begin=writing.tokens[0])
    lines += _calls(writing, rules, terms)
    if rules.must_call:
        return [f"start: {start} calls", *lines]
    if rules.schema is not None:
        return [f"start: {start} (calls | json_answer)", *lines]
    return [f"start: {start} (calls | no_call)", "no_call: NO_OBJECT", _NO_OBJECT, *lines]


def _thoughts(markers: ThoughtMarkers | None, rules: AnswerRules, terms: _Terms) -> tuple[str, list[str]]:
    """What an answer begins with, and its rules."""
    if markers is None or not (rules.is_thinking or rules.may_think):
        return "", []
    end = f"thoughts_end{_up_to(markers.close, terms)}"
    if rules.is_thinking:
        return "thoughts_end BLANK", [end]
    return "thoughts?", [f"thoughts: {terms.text(markers.open)} thoughts_end BLANK", end]


def _up_to(marker: str, terms: _Terms) -> str:
    """The rest of a rule for text up to a marker, and the marker."""
    return f"{'' if terms.is_token(marker) else '[lazy]'}: TEXT {terms.text(marker)}"


def _calls(writing: CallWriting, rules: AnswerRules, terms: _Terms) -> list[str]:
    more = f" ({terms.text(writing.separator)} call)*" if rules.is_parallel else ""
    return [
        f"calls: {terms.text(writing.begin)} call{more} {terms.text(writing.end)}",
        *_call_rules(writing, writing.before_name, rules, terms),
    ]


def _lazy_calls(writing: CallWriting, marker: str, rules: AnswerRules, terms: _Terms) -> list[str]:
    """The rules of calls that begin with a marker wherever it stands in a text."""
    head = f"lazy_head{_up_to(marker, terms)}"
    if not writing.begin:
        many = "*" if rules.is_parallel else "?"
        rest = writing.before_name.removeprefix(marker)
        return [f"lazy_calls: (lazy_head call){many}", head, *_call_rules(writing, rest, rules, terms)]
    inner = replace(writing, begin=writing.begin.removeprefix(marker))
    return ["lazy_calls: (lazy_head calls)?", head, *_calls(inner, rules, terms)]


def _call_rules(writing: CallWriting, before_name: str, rules: AnswerRules, terms: _Terms) -> list[str]:
    options = " | ".join(f"call_{index}" for index in range(len(rules.functions)))
    return [
        f"call: {options}",
        *(
            f"call_{index}: {terms.text(before_name + function.name + writing.before_arguments)} "
            f"arguments_{index} {terms.text(writing.after_arguments)}"
            for index, function in enumerate(rules.functions)
        ),
    ]


def _harmony(rules: AnswerRules, terms: _Terms) -> list[str]:
    next_message = terms.text("<|end|><|start|>assistant")
    lines = [f"analysis: {terms.text('<|channel|>analysis<|message|>')} TEXT {next_message}"]
    final = terms.text("<|channel|>final<|message|>")
    if rules.schema is not None:
        lines += [f"final: {final} json_answer", _schema_rule(rules.schema)]
    else:
        lines.append(f"final: {final} TEXT")
    if not rules.functions:
        return ["start: analysis* final", *lines]
    lines += _argument_rules(rules.functions)
    lines += _call_rules(_HARMONY_WRITING, _HARMONY_WRITING.before_name, rules, terms)
    if rules.must_call:
        return ["start: analysis* call", *lines]
    preamble = f"preamble: {terms.text('<|channel|>commentary<|message|>')} TEXT {next_message}"
    return ["start: (analysis | preamble)* (call | final)", preamble, *lines]
