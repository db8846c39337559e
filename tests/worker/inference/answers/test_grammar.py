"""Whatever the model prefers, an answer that must call functions does so, with arguments of their schemas."""

import json
import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.core.chat.tools import FunctionTool
from app.core.engine.messages import (
    BaseModelRef,
    ChatMessage,
    GenerateRequest,
    NamedFunction,
    OutputSchema,
    TokenDelta,
    ToolCallDelta,
    ToolChoice,
    Tools,
    join_deltas,
)
from app.core.errors import InvalidRequest
from app.core.specs.job import QuantizationSpec
from tests.worker.families import with_controls
from tests.worker.inference.answers.test_answer_text import TOKENIZERS
from tests.worker.inference.answers.test_families import GLM, GRANITE, PHI_4_MINI, PLAIN, QWEN_CODER
from worker.inference.answers.answer_text import ParsedAnswer
from worker.inference.answers.choice import find_grammar, find_parsed_format
from worker.inference.preprocessing import decode
from worker.inference.sampling.grammars import GrammarCache, SchemaGrammar

END = "<|endoftext|>"
MOVE = FunctionTool(
    name="move",
    parameters={
        "type": "object",
        "properties": {"to": {"enum": ["north", "south"]}, "steps": {"type": "integer", "maximum": 99}},
        "required": ["to", "steps"],
        "additionalProperties": False,
    },
    strict=True,
)
STOP = FunctionTool(name="stop")
FAMILIES: dict[str, PreTrainedTokenizerFast] = {
    **TOKENIZERS,
    "mistral list": with_controls((END, "[TOOL_CALLS]"), template="{{ '[TOOL_CALLS] [' }}"),
    "phi": with_controls((END, "<|tool_call|>", "<|/tool_call|>"), template=PHI_4_MINI),
    "granite": with_controls((END, "<|tool_call|>"), template=GRANITE),
    "hermes tokens": with_controls((END, "<tool_call>", "</tool_call>"), template="<tool_call>"),
    "our own, as text": with_controls((END,), template=PLAIN),
    "qwen coder": with_controls((END,), template=QWEN_CODER),
    "glm": with_controls((END, "<think>", "</think>"), template=GLM),
}


def make_request(
    *,
    choice: ToolChoice = "required",
    parallel: bool = True,
    functions: tuple[FunctionTool, ...] = (MOVE, STOP),
    schema: dict[str, Any] | None = None,
) -> GenerateRequest:
    return GenerateRequest(
        base_model=BaseModelRef(name="base", quantization=QuantizationSpec()),
        messages=[ChatMessage(role="user", content="Hi")],
        tools=Tools(functions=list(functions), choice=choice, parallel=parallel) if functions else None,
        output_schema=OutputSchema(source=json.dumps(schema), strict=True) if schema else None,
    )


def compile_grammar(
    tokenizer: PreTrainedTokenizerFast, request: GenerateRequest, rendered: str = "</think>"
) -> SchemaGrammar:
    source = find_grammar(tokenizer, request, rendered)
    assert source is not None
    return GrammarCache().get(source, tokenizer, tokenizer_digest="", end_ids={tokenizer.eos_token_id})


def allowed_ids(words: Any, count: int) -> list[int]:
    return [index for index in range(count) if words[index // 32] >> (index % 32) & 1]


def say(tokenizer: PreTrainedTokenizerFast, grammar: SchemaGrammar, rng: random.Random) -> list[int]:
    """A random answer of allowed tokens, which ends as soon as it may."""
    matcher, said = grammar.start(), []
    while True:
        allowed = allowed_ids(matcher.allowed_tokens(), len(tokenizer))
        if tokenizer.eos_token_id in allowed:
            return said
        said.append(rng.choice(allowed))
        matcher.accept_token(said[-1])


def accepts(tokenizer: PreTrainedTokenizerFast, grammar: SchemaGrammar, text: str) -> bool:
    """Whether the grammar allows the text token by token."""
    matcher = grammar.start()
    for token_id in tokenizer(text, add_special_tokens=False).input_ids:
        if token_id not in allowed_ids(matcher.allowed_tokens(), len(tokenizer)):
            return False
        matcher.accept_token(token_id)
    return True


def parse(
    tokenizer: PreTrainedTokenizerFast, request: GenerateRequest, token_ids: list[int], rendered: str = ""
) -> tuple[str, list[tuple[str | None, Any]]]:
    """The text, and the calls with their arguments."""
    parsed = find_parsed_format(tokenizer, request, rendered)
    assert parsed is not None
    text = ParsedAnswer(lambda ids: decode(tokenizer, ids), parsed, ())
    deltas = [delta for token_id in token_ids for delta in text.add(token_id, None)]
    replies = join_deltas([*deltas, *text.finish(is_cut=False)])
    calls = [
        (reply.name, json.loads(reply.arguments)) for reply in replies if isinstance(reply, ToolCallDelta)
    ]
    return "".join(reply.text for reply in replies if isinstance(reply, TokenDelta)), calls


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_made_whatever_the_model_prefers(name: str, seed: int) -> None:
    tokenizer, request = FAMILIES[name], make_request()
    said = say(tokenizer, compile_grammar(tokenizer, request), random.Random(seed))
    text, calls = parse(tokenizer, request, said)
    assert text == ""
    assert calls
    for called, arguments in calls:
        if called == "stop":
            assert arguments == {}
        else:
            assert called == "move"
            assert arguments.keys() == {"to", "steps"}
            assert arguments["to"] in ("north", "south")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_function_is_the_one_that_is_called(name: str) -> None:
    tokenizer, request = FAMILIES[name], make_request(choice=NamedFunction(name="stop"))
    said = say(tokenizer, compile_grammar(tokenizer, request), random.Random(0))
    assert parse(tokenizer, request, said)[1] == [("stop", {})]


TWO_CALLS = {
    "qwen": '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    "mistral": "[TOOL_CALLS]stop[ARGS]{}[TOOL_CALLS]stop[ARGS]{}",
    "mistral list": '[TOOL_CALLS] [{"name": "stop", "arguments": {}}, {"name": "stop", "arguments": {}}]',
    "llama": '{"name": "stop", "parameters": {}}; {"name": "stop", "parameters": {}}',
}


@pytest.mark.parametrize("name", TWO_CALLS)
def test_several_calls_are_allowed_unless_they_must_not_be_parallel(name: str) -> None:
    tokenizer = FAMILIES[name]
    assert accepts(tokenizer, compile_grammar(tokenizer, make_request()), TWO_CALLS[name])
    assert not accepts(tokenizer, compile_grammar(tokenizer, make_request(parallel=False)), TWO_CALLS[name])


def test_thoughts_may_come_before_a_required_call() -> None:
    tokenizer = FAMILIES["qwen"]
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    grammar = compile_grammar(tokenizer, make_request(), "<|im_start|>assistant\n")
    assert accepts(tokenizer, grammar, f"<think>\nHm.\n</think>\n\n{call}")
    assert accepts(tokenizer, grammar, call)
    opened = compile_grammar(tokenizer, make_request(), "<|im_start|>assistant\n<think>\n")
    assert accepts(tokenizer, opened, f"Hm.\n</think>\n\n{call}")
    closed = compile_grammar(tokenizer, make_request(), "<think>\n\n</think>\n\n")
    assert not accepts(tokenizer, closed, "<think>")


STRICT_CALLS = {
    "qwen": '<tool_call>\n{"name": "move", "arguments": ',
    "our own, as text": '<tool_call>\n{"name": "move", "arguments": ',
    "mistral": "[TOOL_CALLS]move[ARGS]",
    "mistral list": '[TOOL_CALLS] [{"name": "move", "arguments": ',
    "phi": '<|tool_call|>[{"name": "move", "arguments": ',
}


@pytest.mark.parametrize("name", STRICT_CALLS)
def test_a_strict_function_is_held_to_its_schema_once_the_model_calls_it(name: str) -> None:
    tokenizer = FAMILIES[name]
    grammar = compile_grammar(tokenizer, make_request(choice="auto"))
    for text in ("Just text {a < b}.", f"Wait. {STRICT_CALLS[name]}" + '{"to": "north", "steps": 3}'):
        assert accepts(tokenizer, grammar, text), text
    assert not accepts(tokenizer, grammar, f"Wait. {STRICT_CALLS[name]}" + '{"to": "up"')


def test_a_strict_function_of_a_family_without_marker_is_held_to_its_schema() -> None:
    tokenizer = FAMILIES["llama"]
    grammar = compile_grammar(tokenizer, make_request(choice="auto"))
    for text in ("Just text {a < b}.", '{"name": "move", "parameters": {"to": "north", "steps": 3}}'):
        assert accepts(tokenizer, grammar, text), text
    for text in ('{"name": "move", "parameters": {"to": "up"', '{"name": "other"', ' {"x'):
        assert not accepts(tokenizer, grammar, text), text


def test_a_strict_function_of_gpt_oss_is_held_to_its_schema() -> None:
    tokenizer = FAMILIES["gpt-oss"]
    grammar = compile_grammar(tokenizer, make_request(choice="auto"), "<|start|>assistant")
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    call = "<|channel|>commentary to=functions.move <|constrain|>json<|message|>"
    assert accepts(tokenizer, grammar, f"{thought}<|channel|>final<|message|>Yes.")
    assert accepts(tokenizer, grammar, f'{thought}{call}{{"to": "north", "steps": 3}}')
    assert not accepts(tokenizer, grammar, f'{thought}{call}{{"to": "up"')


CITY = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}


@pytest.mark.parametrize("name", ["qwen", "llama", "mistral", "our own, as text"])
def test_with_a_schema_an_answer_is_calls_or_json_of_it(name: str) -> None:
    tokenizer = FAMILIES[name]
    grammar = compile_grammar(tokenizer, make_request(choice="auto", schema=CITY))
    assert accepts(tokenizer, grammar, '{"city": "Rome"}')
    marker = "<|python_tag|>" if name == "llama" else ""
    assert accepts(tokenizer, grammar, marker + TWO_CALLS.get(name, TWO_CALLS["qwen"]))
    assert not accepts(tokenizer, grammar, "Rome")
    assert not accepts(tokenizer, grammar, '{"city": "Paris')


def test_json_of_a_schema_may_come_after_thoughts() -> None:
    tokenizer, request = FAMILIES["qwen"], make_request(functions=(), schema=CITY)
    assert accepts(tokenizer, compile_grammar(tokenizer, request, ""), '<think>Hm.</think>\n{"city": "Rome"}')
    opened = compile_grammar(tokenizer, request, "<think>\n")
    assert accepts(tokenizer, opened, 'Hm.</think>{"city": "Rome"}')
    final = '<|channel|>final<|message|>{"city": "Rome"}'
    gpt_oss = FAMILIES["gpt-oss"]
    assert accepts(gpt_oss, compile_grammar(gpt_oss, request, ""), final)
    assert not accepts(gpt_oss, compile_grammar(gpt_oss, request, ""), "<|channel|>final<|message|>Rome")


def test_answers_that_may_be_any_text_have_no_grammar() -> None:
    request = make_request(choice="auto", functions=(STOP,))
    assert find_grammar(FAMILIES["qwen"], request, "") is None


def test_without_thoughts_and_functions_the_schema_is_the_grammar() -> None:
    request = make_request(functions=(), schema=CITY)
    assert find_grammar(FAMILIES["llama"], request, "") is request.output_schema


def test_a_schema_that_can_not_be_kept_to_names_its_function() -> None:
    odd = FunctionTool(
        name="odd",
        parameters={"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}},
        strict=True,
    )
    with pytest.raises(InvalidRequest, match="function 'odd'") as caught:
        compile_grammar(FAMILIES["qwen"], make_request(functions=(STOP, odd)))
    assert caught.value.param == "tools"
    lenient = odd.model_copy(update={"strict": False})
    assert compile_grammar(FAMILIES["qwen"], make_request(functions=(STOP, lenient)))
