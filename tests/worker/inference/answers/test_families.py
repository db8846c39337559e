"""Every family's answers, in all splits: what the model wrote against the text, thoughts and calls in it."""

import json

import pytest

from app.core.chat.tools import ToolCall
from app.core.engine.messages import ChatMessage
from tests.worker.inference.answers.parsing import BAR, FUNCTIONS, WEATHER, call, parse, splits, text, thought
from tests.worker.templates.test_families import published
from tests.worker.templates.tool_templates import ALL_TEMPLATES
from worker.inference.answers.choice import find_answer_format
from worker.inference.answers.families import find_format
from worker.inference.answers.harmony import HarmonyAnswer
from worker.inference.answers.parser import AnswerParser
from worker.inference.answers.source import PieceKind
from worker.templates.renderer import control_ends, render

ROME = '{"city": "a}\\"b", "days": [1, {"x": 2}]}'
HERMES = published("qwen2_5")
QWEN_3 = published("qwen3")
LLAMA = published("llama3_1")
DEEPSEEK = published("deepseek_r1_distill")
GPT_OSS = published("gptoss")
QWEN_CODER = published("qwen3_5_think")
GLM = published("glm4moe")
LFM = published("lfm2_2_5")
# Parts of templates that are not published with TRL.
MISTRAL = "{{ '[TOOL_CALLS] [' }}"
MISTRAL_11 = "{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}"
MAGISTRAL = "[THINK]...[/THINK] [TOOL_CALLS]"
PHI_4_MINI = "{{ '<|tool|>' + tools + '<|/tool|>' }}"
GRANITE = "respond only with <|tool_call|> followed by a JSON list"
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"


BEGINNINGS = ("<tool_call>", "[TOOL_CALLS]", '{"name"', " to=functions", f"<{BAR}tool", "<|tool_call")


def deepseek(name: str) -> str:
    return f"<{BAR}tool▁{name}{BAR}>"


CALLS, CALLS_END = deepseek("calls▁begin"), deepseek("calls▁end")
CALL, CALL_END, SEP = deepseek("call▁begin"), deepseek("call▁end"), deepseek("sep")

CASES = {
    "hermes": (
        HERMES,
        f'One moment.\n\n<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\n',
        [*text("One moment."), *call("weather", ROME), *call("time", "{}")],
    ),
    "hermes, then text": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n\nDone: <b>.',
        [*call("time", "{}"), *text("Done: <b>.")],
    ),
    "hermes, in another order": (
        HERMES,
        '<tool_call>{"arguments": {"city": "Rome"}, "name": "weather"}</tool_call>',
        call("weather", '{"city": "Rome"}'),
    ),
    "hermes, arguments in a string": (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>',
        call("weather", '{"city": "Rome"}'),
    ),
    "hermes, without arguments": (HERMES, '<tool_call>{"name": "time"}</tool_call>', call("time", "{}")),
    "hermes, no end": (
        HERMES,
        '<tool_call>\n{"name": "time", "arguments": {}}',
        call("time", "{}"),
    ),
    "our own": (
        PLAIN,
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
        call("time", "{}"),
    ),
    "qwen 3": (
        QWEN_3,
        "<think>\nHot?\n</think>\n\nWait.\n"
        f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>',
        [*thought("Hot?"), *text("Wait."), *call("weather", ROME)],
    ),
    "qwen 3, empty thought": (QWEN_3, "<think>\n\n</think>\n\nHi <b>\n", text("Hi <b>\n")),
    "qwen 3, no thought": (QWEN_3, "\n Hi </think>", text("\n Hi </think>")),
    "qwen coder": (
        QWEN_CODER,
        "<tool_call>\n<function=weather>\n<parameter=city>\n12\n3\n</parameter>\n<parameter=days>\n[1, 2]\n"
        "</parameter>\n</function>\n</tool_call>",
        call("weather", '{"city": "12\\n3", "days": [1, 2]}'),
    ),
    "qwen coder, no arguments": (
        QWEN_CODER,
        "<tool_call>\n<function=time>\n</function>\n</tool_call>",
        call("time", "{}"),
    ),
    "glm": (
        GLM,
        "<think>x</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "</tool_call>\n<tool_call>time\n</tool_call>",
        [*thought("x"), *call("weather", '{"city": "Rome"}'), *call("time", "{}")],
    ),
    "llama": (
        LLAMA,
        f'{{"name": "weather", "parameters": {ROME}}}',
        call("weather", ROME),
    ),
    "llama, two": (
        LLAMA,
        '<|python_tag|>{"type": "function", "name": "time", "parameters": {}}; '
        '{"name": "weather", "parameters": {"city": "Rome"}}',
        [*call("time", "{}"), *call("weather", '{"city": "Rome"}')],
    ),
    "llama, JSON that is no call": (
        LLAMA,
        '{"name": "Rome", "parameters": {"x": 1}}',
        text('{"name": "Rome", "parameters": {"x": 1}}'),
    ),
    "llama, code": (LLAMA, "<|python_tag|>print(1)", text("<|python_tag|>print(1)")),
    "mistral": (
        MISTRAL,
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ROME}}}, {{"name": "time", "arguments": {{}}, '
        '"id": "abcdefghi"}]',
        [*call("weather", ROME), *call("time", "{}")],
    ),
    "mistral, named": (
        MISTRAL_11,
        f"Wait.[TOOL_CALLS]weather[ARGS]{ROME}[TOOL_CALLS]time[CALL_ID]abcdefghi[ARGS]{{}}",
        [*text("Wait."), *call("weather", ROME), *call("time", "{}")],
    ),
    "magistral": (
        MAGISTRAL,
        "[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]time[ARGS]{}",
        [*thought("Hm."), *text("Yes."), *call("time", "{}")],
    ),
    "phi": (
        PHI_4_MINI,
        f'<|tool_call|>[{{"name": "weather", "arguments": {ROME}}}]<|/tool_call|>',
        call("weather", ROME),
    ),
    "granite": (
        GRANITE,
        '<|tool_call|>[{"name": "time", "arguments": {}}, {"name": "time", "arguments": {}}]',
        [*call("time", "{}"), *call("time", "{}")],
    ),
    "granite 3.0": (
        HERMES,
        '<tool_call>[{"name": "time", "arguments": {}}]',
        call("time", "{}"),
    ),
    "deepseek r1": (
        DEEPSEEK,
        f"<think>\nHot?\n</think>\n\nWait.{CALLS}{CALL}function{SEP}weather\n```json\n{ROME}\n```{CALL_END}\n"
        f"{CALL}function{SEP}time\n```json\n{{}}\n```{CALL_END}{CALLS_END}",
        [*thought("Hot?"), *text("Wait."), *call("weather", ROME), *call("time", "{}")],
    ),
    "deepseek v3.1": (
        DEEPSEEK,
        f"{CALLS}{CALL}weather{SEP}{ROME}{CALL_END}{CALL}time{SEP}{{}}{CALL_END}{CALLS_END}",
        [*call("weather", ROME), *call("time", "{}")],
    ),
    "lfm": (
        LFM,
        "One moment."
        "<|tool_call_start|>[weather(city='Rome', days=[1, {'x': true}]), time()]<|tool_call_end|>",
        [
            *text("One moment."),
            *call("weather", '{"city": "Rome", "days": [1, {"x": true}]}'),
            *call("time", "{}"),
        ],
    ),
    "gpt-oss": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Hot?<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
        f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ROME}",
        [*thought("Hot?"), *text("Wait."), *call("weather", ROME)],
    ),
    "gpt-oss, recipient first": (
        GPT_OSS,
        " to=functions.time<|channel|>commentary json<|message|>{}",
        call("time", "{}"),
    ),
    "gpt-oss, answer": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Hot?<|end|><|start|>assistant<|channel|>final<|message|>Yes: <b>.",
        [*thought("Hot?"), *text("Yes: <b>.")],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_answer_is_the_same_in_all_splits(case) -> None:
    template, answer, expected = case
    for parts in splits(answer):
        assert parse(template, parts) == expected, parts


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_without_functions_nothing_is_a_call(case) -> None:
    template, answer, _expected = case
    kinds = {kind for kind, _text in parse(template, [answer], functions={})}
    assert kinds <= {PieceKind.TEXT, PieceKind.THOUGHT}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_answer_that_is_cut_off_anywhere_has_calls_with_the_beginning_of_their_arguments(case) -> None:
    template, answer, expected = case
    whole = "".join(value for kind, value in expected if kind is PieceKind.ARGUMENTS)
    for end in range(len(answer)):
        found = parse(template, [*answer[:end]], is_cut=True)
        assert PieceKind.WITHDRAWN not in [kind for kind, _text in found]
        assert whole.startswith("".join(value for kind, value in found if kind is PieceKind.ARGUMENTS))


def test_arguments_arrive_as_they_are_made() -> None:
    parser = AnswerParser(find_format(HERMES), FUNCTIONS, is_thinking=False)
    list(parser.add('<tool_call>{"name": "weather", "argum'))
    found = [piece for piece in parser.add('ents": {"ci') if piece.kind is not PieceKind.SKIPPED]
    assert [(piece.kind, piece.text) for piece in found] == [
        (PieceKind.CALL, "weather"),
        (PieceKind.ARGUMENTS, '{"ci'),
    ]


@pytest.mark.parametrize(
    "cut",
    ["<tool_call>", '<tool_call>\n{"', '<tool_call>\n{"name": "wea', '<tool_call>\n{"name": "weather", "arg'],
)
def test_a_call_that_is_cut_off_before_its_arguments_is_left_out(cut: str) -> None:
    assert parse(HERMES, [f"Wait. {cut}"], is_cut=True) == text("Wait.")
    assert parse(HERMES, [f"Wait. {cut}"]) == text(f"Wait. {cut}")


MALFORMED = {
    "no JSON": (HERMES, "<tool_call>nothing</tool_call> x"),
    "Python": (HERMES, '<tool_call>{"name": "weather", "arguments": {\'city\': \'Rome\'}}</tool_call>.'),
    "NaN": (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": NaN}}</tool_call>'),
    "no name": (HERMES, '<tool_call>{"arguments": {"city": 1}}</tool_call>'),
    "broken off": (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": '),
    "half a marker": (HERMES, "a < b <tool_cal"),
    "parameters that do not end": (
        QWEN_CODER,
        "<tool_call><function=weather><parameter=city>Rome</function>",
    ),
    "list": (MISTRAL, "[TOOL_CALLS] [1, 2]"),
    "deepseek": (DEEPSEEK, f"{CALLS}{CALL}function{SEP}weather\n{ROME}"),
    "lfm": (LFM, "<|tool_call_start|>[weather(city)]<|tool_call_end|>"),
    "lfm, code": (LFM, "<|tool_call_start|>[weather(city=open('x'))]<|tool_call_end|>"),
    "gpt-oss": (GPT_OSS, "<|channel|>commentary to=functions.time<|message|>nothing"),
    "gpt-oss, no header": (GPT_OSS, "Hello <|channel"),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_call_is_text_with_nothing_lost(case) -> None:
    template, answer = case
    for parts in splits(answer):
        found = parse(template, parts)
        assert "".join(value for kind, value in found if kind is PieceKind.TEXT) == answer
        kinds = [kind for kind, _text in found]
        assert kinds.count(PieceKind.CALL) == kinds.count(PieceKind.WITHDRAWN)


def test_a_prompt_may_have_opened_the_thoughts() -> None:
    for parts in splits("Hot?\n</think>\n\nYes."):
        assert parse(QWEN_3, parts, is_thinking=True) == [*thought("Hot?"), *text("Yes.")]


def test_thoughts_without_end_are_thoughts() -> None:
    assert parse(QWEN_3, ["<think>\nHot? <tool_call>"]) == thought("Hot? <tool_call>")


def test_the_family_is_found_by_the_templates_text() -> None:
    assert isinstance(find_format(GPT_OSS), HarmonyAnswer)
    assert find_format(QWEN_3).has_thoughts
    assert not find_format(HERMES).has_thoughts
    assert find_format(QWEN_3).is_thinking_after("<|im_start|>assistant\n<think>\n")
    assert not find_format(QWEN_3).is_thinking_after("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ALL_TEMPLATES)
def test_what_a_template_writes_is_parsed_as_the_call_that_it_is(name: str) -> None:
    """The answer that training teaches is the one that serving understands."""
    tokenizer = ALL_TEMPLATES[name].tokenizer(name)
    called = ToolCall(name="weather", arguments={"city": 'a "b" {'}, id="abcdefghi")
    turns = [
        ChatMessage(role="user", content="Hot?"),
        ChatMessage(role="assistant", content="", tool_calls=[called]),
    ]
    prompt = render(tokenizer, turns[:1], add_generation_prompt=True, tools=[WEATHER])
    whole = render(tokenizer, turns, add_generation_prompt=False, tools=[WEATHER])
    answer = whole.removeprefix(prompt) if whole.startswith(prompt) else whole.rpartition("Hot?")[2]
    # What a template writes after the question is not all made by the model.
    begin = min(place for mark in BEGINNINGS if (place := answer.find(mark)) >= 0)
    ends = [place for end in control_ends(tokenizer) if (place := answer.find(end, begin)) >= 0]
    parser = AnswerParser(find_answer_format(tokenizer), FUNCTIONS, is_thinking=False)
    pieces = [*parser.add(answer[begin : min(ends, default=None)]), *parser.finish(is_cut=False)]
    assert [piece.text for piece in pieces if piece.kind is PieceKind.CALL] == ["weather"]
    arguments = "".join(piece.text for piece in pieces if piece.kind is PieceKind.ARGUMENTS)
    assert json.loads(arguments) == called.arguments
    assert not "".join(piece.text for piece in pieces if piece.kind is PieceKind.TEXT).strip()
