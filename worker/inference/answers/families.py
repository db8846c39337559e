"""How the families write calls and thoughts, found by what their chat templates contain.

A model writes what its template taught it, whatever its name is. A template that shows no calls has those of
Tunesmith's own templates, which are Hermes'.
"""

from dataclasses import replace
from functools import lru_cache

import regex

from worker.inference.answers.calls import CallParser, CallSyntax, CallWriting, EitherCalls, Header
from worker.inference.answers.harmony import HarmonyAnswer
from worker.inference.answers.parameters import ParameterCalls
from worker.inference.answers.parser import BLANKS, AnswerFormat, MarkedAnswer, ThoughtMarkers
from worker.inference.answers.python_calls import PythonCalls

_TYPES = r'(?:"(?:type|id)"\s*:\s*"[^"]*"\s*,\s*)*'
_OBJECT = Header(
    regex.compile(
        r"\s*\[?\s*\{\s*" + _TYPES + r'"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*'
        r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
    ),
    (regex.compile(r'\s*(?:,\s*"(?:type|id)"\s*:\s*"[^"]*"\s*)*\}'),),
)
_NEXT_OBJECT = regex.compile(r"\s*,\s*(?=\{)")
_LIST_END = regex.compile(r"\s*\]")


# DeepSeek's markers have a fullwidth bar.
_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR = (
    f"<\N{FULLWIDTH VERTICAL LINE}tool▁{name}\N{FULLWIDTH VERTICAL LINE}>"
    for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
)


def _begin(marker: str) -> object:
    return regex.compile(BLANKS + regex.escape(marker))


# Hermes 2 Pro, Qwen 2.5 and 3, SmolLM3, Granite 4; Granite 3.0 with a list.
HERMES = CallSyntax(
    begin=_begin("<tool_call>"),
    headers=(_OBJECT,),
    has_objects=True,
    separator=_NEXT_OBJECT,
    ends=(_LIST_END, regex.compile(r"\s*</tool_call>")),
)
# Phi-4-mini, Granite 3.1 to 3.3.
LISTED = CallSyntax(
    begin=_begin("<|tool_call|>"),
    headers=(_OBJECT,),
    has_objects=True,
    separator=_NEXT_OBJECT,
    ends=(_LIST_END, regex.compile(r"\s*<\|/tool_call\|>")),
)
# Llama 3.1 to 3.3: with the marker, or a JSON object from the beginning.
LLAMA = CallSyntax(
    begin=_begin("<|python_tag|>"),
    headers=(_OBJECT,),
    has_objects=True,
    bare=regex.compile(r'\s*(?=\[?\s*\{\s*"(?:type|name|function|parameters|arguments)")'),
    separator=regex.compile(r"\s*[;,]?\s*(?=\{)"),
    ends=(_LIST_END,),
)
# A list of objects up to version 3; `name[ARGS]{...}` after each marker since version 11 of the tokenizers.
MISTRAL = CallSyntax(
    begin=_begin("[TOOL_CALLS]"),
    headers=(
        _OBJECT,
        Header(regex.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")),
    ),
    has_objects=True,
    separator=_NEXT_OBJECT,
    ends=(_LIST_END,),
)
_TOOL_CALL_END = regex.compile(r"\s*</tool_call>")
# Qwen3-Coder, Qwen 3.5, Nemotron 3.
QWEN_CODER = ParameterCalls(
    function=regex.compile(r"\s*<function=(?P<name>[^>\n]+)>"),
    parameter=regex.compile(r"\s*<parameter=(?P<name>[^>\n]+)>\n?(?P<value>(?s:.*?))\n?</parameter>"),
    ends=(regex.compile(r"\s*</function>"), _TOOL_CALL_END),
    otherwise=HERMES,
)
# GLM 4.5 to 4.7.
GLM = ParameterCalls(
    function=regex.compile(r"\s*(?P<name>[\w.-]+)(?=\s*<)"),
    parameter=regex.compile(
        r"\s*<arg_key>(?P<name>[^<]+)</arg_key>\s*<arg_value>(?P<value>(?s:.*?))</arg_value>"
    ),
    ends=(_TOOL_CALL_END,),
    otherwise=HERMES,
)
# LFM2 and LFM2.5.
LFM = EitherCalls([PythonCalls(_begin("<|tool_call_start|>")), HERMES])
# DeepSeek V3.1, then V3 and R1, which write the arguments into a block of code.
DEEPSEEK = CallSyntax(
    begin=_begin(_CALLS_BEGIN),
    headers=(
        Header(
            regex.compile(rf"\s*{_CALL_BEGIN}(?P<name>[^\n<]+){_SEPARATOR}\s*(?=\{{)"),
            (regex.compile(rf"\s*{_CALL_END}"),),
        ),
        Header(
            regex.compile(
                rf"\s*{_CALL_BEGIN}\s*(?:function{_SEPARATOR})?(?P<name>[^\n<]+)\n```json\s*(?=\{{)"
            ),
            (regex.compile(r"\s*```"), regex.compile(rf"\s*{_CALL_END}")),
        ),
    ),
    separator=regex.compile(rf"\s*(?={_CALL_BEGIN})"),
    ends=(regex.compile(rf"\s*{_CALLS_END}"),),
)

_OBJECT_NAME, _OBJECT_ARGUMENTS = '{"name": "', '", "arguments": '
_HERMES_WRITING = CallWriting(
    before_name="<tool_call>\n" + _OBJECT_NAME,
    before_arguments=_OBJECT_ARGUMENTS,
    after_arguments="}\n</tool_call>",
    separator="\n",
    tokens=("<tool_call>", "</tool_call>"),
)
_LFM_TOKENS = (*_HERMES_WRITING.tokens, "<|tool_call_start|>", "<|tool_call_end|>")
_LIST = CallWriting(
    before_name=_OBJECT_NAME, before_arguments=_OBJECT_ARGUMENTS, after_arguments="}", separator=", ", end="]"
)
_MISTRAL_LIST = replace(_LIST, begin="[TOOL_CALLS] [", tokens=("[TOOL_CALLS]",))
_MISTRAL_NAMED = CallWriting(
    before_name="[TOOL_CALLS]",
    before_arguments="[ARGS]",
    tokens=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
_GRANITE_WRITING = replace(_LIST, begin="<|tool_call|>[", tokens=("<|tool_call|>", "<|/tool_call|>"))
_PHI_WRITING = replace(_GRANITE_WRITING, end="]<|/tool_call|>")
_LLAMA_WRITING = CallWriting(
    before_name=_OBJECT_NAME,
    before_arguments='", "parameters": ',
    after_arguments="}",
    separator="; ",
    tokens=("<|python_tag|>",),
)
_DEEPSEEK_WRITING = CallWriting(
    begin=_CALLS_BEGIN,
    before_name=_CALL_BEGIN,
    before_arguments=_SEPARATOR,
    after_arguments=_CALL_END,
    end=_CALLS_END,
    tokens=(_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR),
)
_DEEPSEEK_CODE_WRITING = replace(
    _DEEPSEEK_WRITING,
    before_name=f"{_CALL_BEGIN}function{_SEPARATOR}",
    before_arguments="\n```json\n",
    after_arguments=f"\n```{_CALL_END}",
    separator="\n",
)
# What a template contains, and the calls of its family. The first match counts.
_CALLS: tuple[tuple[tuple[str, ...], CallParser, CallWriting], ...] = (
    ((_CALLS_BEGIN, "```json"), DEEPSEEK, _DEEPSEEK_CODE_WRITING),
    ((_CALLS_BEGIN,), DEEPSEEK, _DEEPSEEK_WRITING),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL, _MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL, _MISTRAL_LIST),
    (("<tool_call>", "<function="), QWEN_CODER, _HERMES_WRITING),
    (("<tool_call>", "<arg_key>"), GLM, _HERMES_WRITING),
    (("<tool_call>",), HERMES, _HERMES_WRITING),
    (("<|tool_call|>",), LISTED, _GRANITE_WRITING),
    (("<|tool_call_start|>",), LFM, replace(_HERMES_WRITING, tokens=_LFM_TOKENS)),
    (("<|tool|>",), LISTED, _PHI_WRITING),
    (("<|python_tag|>",), LLAMA, _LLAMA_WRITING),
    (("ipython",), LLAMA, _LLAMA_WRITING),
    ((), HERMES, _HERMES_WRITING),
)
# By the marker that calls begin with, the parser of calls of a family, and its tokens.
_MARKED: dict[str, CallParser] = {
    "<tool_call>": HERMES,
    "<|tool_call|>": LISTED,
    "[TOOL_CALLS]": MISTRAL,
    "<|python_tag|>": LLAMA,
    _CALLS_BEGIN: DEEPSEEK,
}
_TOKENS = {
    writing.tokens[0]: writing.tokens
    for writing in (_HERMES_WRITING, _PHI_WRITING, _MISTRAL_NAMED, _LLAMA_WRITING, _DEEPSEEK_WRITING)
}
# A call without a marker, as a template writes it.
_BARE_CALL = regex.compile(r'\{\s*"name"\s*:\s*"[^"]+"\s*,\s*"(?P<key>arguments|parameters)"\s*:')
_THOUGHTS = (
    ThoughtMarkers("[THINK]", "[/THINK]"),
    ThoughtMarkers("<seed:think>", "</seed:think>"),
    ThoughtMarkers("<think>", "</think>"),
)
# In the place of a template: what the tokenizers of Mistral's own library write.
LIBRARY_TEMPLATE = "[TOOL_CALLS][ARGS][THINK]"
_HARMONY = ("<|channel|>", "<|message|>")


@lru_cache(maxsize=64)
def find_format(
    template: str, *, call: str | None = None, tokens: frozenset[str] = frozenset()
) -> AnswerFormat:
    """The format of answers to prompts of this chat template.

    `call` is a call as the template writes it, where that is known. Calls of other families are seen, too, if
    their marker is in `tokens`, the added ones of the tokenizer: a model may have learned both.
    """
    if all(marker in template for marker in _HARMONY):
        return HarmonyAnswer()
    parser, writing = (_find_bare(call) if call else None) or _find_calls(call or template)
    others = [
        (other, marker)
        for marker, other in _MARKED.items()
        if marker in tokens and marker not in writing.tokens
    ]
    markers = [*writing.tokens, *(token for _, marker in others for token in _TOKENS[marker])]
    thoughts = next((one for one in _THOUGHTS if one.open in template or one.close in template), None)
    return MarkedAnswer(
        thoughts,
        EitherCalls([parser, *(other for other, _ in others)]) if others else parser,
        writing,
        tuple(dict.fromkeys(markers)),
    )


def _find_bare(call: str) -> tuple[CallParser, CallWriting] | None:
    """The calls of a template that writes this one without a marker; None where it has a marker."""
    found = _BARE_CALL.search(call)
    if found is None or any(marker in call for marker in _MARKED):
        return None
    return LLAMA, replace(_LLAMA_WRITING, before_arguments=f'", "{found["key"]}": ')


def _find_calls(text: str) -> tuple[CallParser, CallWriting]:
    """The calls of the family that writes this text: a template's, or a call."""
    return next(
        (calls, writing) for contained, calls, writing in _CALLS if all(part in text for part in contained)
    )
