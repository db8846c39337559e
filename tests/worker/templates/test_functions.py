"""Functions, calls and results with the chat templates of many families: what is rendered and learned."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from transformers import PreTrainedTokenizerBase

from app.core.chat.tools import FunctionTool, ToolCall
from app.core.datasets.rows import Conversation, Message
from app.core.errors import InvalidRequest
from app.core.errors.jobs import TemplateMismatch
from tests.worker.families import MODEL_TYPES, make_tokenizer, with_controls
from tests.worker.templates.reasoning_templates import CHATML
from tests.worker.templates.test_turns import learned
from tests.worker.templates.tool_templates import ALL_TEMPLATES, HERMES
from worker.templates.choice import set_template
from worker.templates.notices import describe_row, describe_rows
from worker.templates.prompt_check import check_prompts
from worker.templates.renderer import end_of_calls, end_token_ids, form_of, render, writes_plain_functions
from worker.templates.token_rows import IGNORED, encode_row, format_rows

MOMENT = datetime(2026, 3, 5, tzinfo=UTC)
SCHEMA = {
    "type": "object",
    "properties": {"pier": {"type": "string", "description": "Which pier."}},
    "required": ["pier"],
}
TOOLS = (
    FunctionTool(name="get_tide", description="The height of the tide.", parameters=SCHEMA),
    FunctionTool(name="get_wind", description="The speed of the wind.", parameters=SCHEMA),
)
KNOWING = {
    *("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "gptoss"),
    *("llama3_1", "llama3_2", "glm4moe", "nemotron_3_nano", "lfm2_2_5"),
    *("hermes", "mistral_nemo", "phi4_mini", "deepseek_r1"),
}
OURS = [f"our {family}" for family in MODEL_TYPES]
ONE_CALL = {"gptoss", "llama3_1", "llama3_2"}
# Of which the calls are no JSON.
CALLS_OF_THEIR_OWN = {"qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "glm4moe", "nemotron_3_nano", "lfm2_2_5"}


def call(pier: str, name: str = "get_tide", call_id: str | None = None) -> ToolCall:
    return ToolCall(name=name, arguments={"pier": pier}, id=call_id)


def calls(*made: ToolCall, text: str = "", weight: int = 1) -> Message:
    return Message("assistant", text, weight, tool_calls=made)


def result(content: str, call_id: str | None = None) -> Message:
    return Message("tool", content, tool_call_id=call_id)


QUESTION, ANSWER = Message("user", "How high is it?"), Message("assistant", "It is 1.2 m high.")
CHAIN = Conversation((QUESTION, calls(call("north")), result("1.2 m"), ANSWER), TOOLS)
AT_ONCE = Conversation(
    (
        QUESTION,
        calls(call("north", call_id="call_a"), call("south", "get_wind", "call_b")),
        result("2 kn", "call_b"),
        result('{"metres": "1.2"}', "call_a"),
        ANSWER,
        Message("user", "And in the east?"),
        calls(call("east")),
    ),
    TOOLS,
)


@pytest.fixture(params=[*ALL_TEMPLATES, *OURS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    return tokenizer_of(name)


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    if name in ALL_TEMPLATES:
        return ALL_TEMPLATES[name].tokenizer(name)
    tokenizer = make_tokenizer(name.removeprefix("our "))
    set_template(tokenizer, model_type=MODEL_TYPES[name.removeprefix("our ")])
    return tokenizer


def test_a_template_that_does_not_know_functions_has_the_plain_form(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert writes_plain_functions(tokenizer) is (name not in KNOWING)
    row = encode_row(CHAIN, tokenizer, assistant_only=False, moment=MOMENT)
    assert any("as text in the form of Hermes" in said for said in describe_row(row)) is (name not in KNOWING)
    text = tokenizer.decode(row.input_ids)
    assert "get_wind" in text
    assert text.count("The height of the tide.") == 1
    assert "1.2 m" in text
    if name not in KNOWING:
        assert '<tool_call>\n{"name": "get_tide", "arguments": {"pier": "north"}}\n</tool_call>' in text
        assert "<tool_response>\n1.2 m\n</tool_response>" in text


@pytest.mark.parametrize("assistant_only", [False, True])
def test_calls_are_learned_and_neither_results_nor_questions_nor_descriptions(
    name: str, tokenizer: PreTrainedTokenizerBase, assistant_only: bool
) -> None:
    first, last = learned(CHAIN, tokenizer, assistant_only=assistant_only)

    assert "get_tide" in first
    assert "north" in first
    if name not in CALLS_OF_THEIR_OWN:
        assert '{"pier": "north"}' in first
    assert "It is 1.2 m high." in last
    for text in (first, last):
        assert not any(word in text for word in ("How high", "get_wind", "The height", "Which pier"))
    assert "1.2 m" not in first
    assert "1.2 m" not in last.replace("1.2 m high", "")


def test_several_calls_at_once_and_a_call_at_the_end_are_learned(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = learned(AT_ONCE, tokenizer)

    made = found[:2] if name in ONE_CALL else found[:1]
    assert len(found) == 2 + len(made)
    assert [word for word in ("north", "south", "east") if word in "".join(made)] == ["north", "south"]
    assert "1.2 m high" in found[-2]
    assert "east" in found[-1]
    for text in found:
        assert not any(word in text for word in ("2 kn", "metres", "And in", "call_a"))


def test_results_stand_with_the_call_that_they_are_of(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.decode(encode_row(AT_ONCE, tokenizer, assistant_only=False, moment=MOMENT).input_ids)

    if name in ONE_CALL:
        places = [text.index(word) for word in ('{"pier": "north"}', "metres", '{"pier": "south"}', "2 kn")]
        assert places == sorted(places)
    else:
        assert text.index("2 kn") < text.index("metres")


@pytest.mark.parametrize("row", [CHAIN, AT_ONCE, Conversation(CHAIN.messages)])
def test_the_prompt_is_the_one_that_serving_renders(
    name: str, tokenizer: PreTrainedTokenizerBase, row: Conversation
) -> None:
    ends = [place for place, message in enumerate(row.messages, start=1) if message.role == "assistant"]
    if row is AT_ONCE and name in ONE_CALL:
        ends.remove(2)  # calls without their results can't be told apart into turns
    for end in ends:
        part = replace(row, messages=row.messages[:end])
        formatted = format_rows(
            [(1, part)], tokenizer, assistant_only=False, max_length=10_000, moment=MOMENT
        )
        check_prompts(formatted.samples, tokenizer, moment=MOMENT)


def test_a_turn_of_calls_ends_where_serving_stops(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(CHAIN, messages=CHAIN.messages[:2])
    encoded = encode_row(row, tokenizer, assistant_only=True, moment=MOMENT)

    last = [label for label in encoded.labels if label != IGNORED][-1]
    assert last in end_token_ids(tokenizer, None)


def test_a_call_without_arguments_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    silent = ToolCall(name="get_tide", arguments={})
    row = Conversation((QUESTION, calls(silent), result(""), ANSWER, QUESTION, calls(silent)), TOOLS)

    first, answer, last = learned(row, tokenizer)

    assert "get_tide" in first
    assert "1.2 m high" in answer
    assert "get_tide" in last


def test_calls_of_weight_0_are_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(CHAIN, messages=(QUESTION, calls(call("north"), weight=0), *CHAIN.messages[2:]))

    (found,) = learned(row, tokenizer, assistant_only=False)

    assert "1.2 m high" in found
    assert "get_tide" not in found


def test_a_system_message_stands_beside_the_functions(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    row = replace(CHAIN, messages=(Message("system", "Be brief."), *CHAIN.messages))
    if name in ("gemma", "our gemma"):
        with pytest.raises(InvalidRequest):
            encode_row(row, tokenizer, assistant_only=False, moment=MOMENT)
        return

    encoded = encode_row(row, tokenizer, assistant_only=False, moment=MOMENT)

    omitted = any("Be brief." in said for said in describe_row(encoded))
    assert ("Be brief." in tokenizer.decode(encoded.input_ids)) is not omitted


def test_thoughts_before_a_call_are_learned_or_named_as_left_out(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    thinking = replace(CHAIN.messages[1], reasoning="Look at the table.")
    last = replace(ANSWER, reasoning="Read it aloud.")
    row = Conversation((QUESTION, thinking, CHAIN.messages[2], last), TOOLS)
    if name == "qwen3_5_nothink":
        with pytest.raises(TemplateMismatch, match="unlike the beginning"):
            learned(row, tokenizer)
        return

    first, *_others, final = learned(row, tokenizer)

    omitted = " ".join(describe_row(encode_row(row, tokenizer, assistant_only=False, moment=MOMENT)))
    assert ("Look at the table." in first) is not ("Look at the table." in omitted)
    assert ("Read it aloud." in final) is not ("Read it aloud." in omitted)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qwen2_5",
            '<tool_call>\n{"name": "get_tide", "arguments": {"pier": "north"}}\n</tool_call><|im_end|>',
        ),
        (
            "our llama2",
            ' <tool_call>\n{"name": "get_tide", "arguments": {"pier": "north"}}\n</tool_call> </s>',
        ),
        ("llama3_2", '{"name": "get_tide", "parameters": {"pier": "north"}}<|eot_id|>'),
        ("gptoss", ' to=functions.get_tide<|channel|>commentary json<|message|>{"pier": "north"}<|call|>'),
        (
            "hermes",
            '<tool_call>\n{ "arguments": {"pier": "north"}, "name": "get_tide"}\n</tool_call> <|im_end|>',
        ),
        ("phi4_mini", '{"name": "get_tide", "arguments": {"pier": "north"}}<|end|>'),
        (
            "mistral_nemo",
            '[TOOL_CALLS][{"name": "get_tide", "arguments": {"pier": "north"}, "id": "abcdefghi"}]</s>',
        ),
        ("lfm2_2_5", "<|tool_call_start|>[get_tide(pier='north')]<|tool_call_end|><|im_end|>"),
    ],
)
def test_a_call_is_exactly_that_of_the_family(name: str, expected: str) -> None:
    row = Conversation(
        (QUESTION, calls(call("north", call_id="abcdefghi")), result("1.2 m", "abcdefghi"), ANSWER), TOOLS
    )

    assert learned(row, tokenizer_of(name))[0] == expected


def test_text_beside_calls_is_named_where_the_template_leaves_it_out() -> None:
    row = Conversation((QUESTION, calls(call("north"), text="I look."), result("1.2 m"), ANSWER), TOOLS)

    kept = encode_row(row, tokenizer_of("qwen2_5"), assistant_only=False, moment=MOMENT)
    lost = encode_row(row, tokenizer_of("phi4_mini"), assistant_only=False, moment=MOMENT)

    assert kept.omissions == ()
    assert [str(one) for one in lost.omissions] == ["7 characters of message 2: 'I look.'"]


def test_ids_become_what_the_template_needs() -> None:
    form = form_of(tokenizer_of("mistral_nemo"))
    assert form.needs_short_ids
    text = render(tokenizer_of("mistral_nemo"), AT_ONCE.messages[:4], add_generation_prompt=True, tools=TOOLS)
    ids = [piece[:9] for piece in text.split('"id": "')[1:]]
    assert len(set(ids)) == 2
    assert [piece[:9] for piece in text.split('"call_id": "')[1:]] == ids[::-1]


def test_arguments_are_text_where_the_template_writes_them_as_they_are() -> None:
    assert form_of(tokenizer_of("phi4_mini")).arguments_as_text
    assert not form_of(tokenizer_of("qwen2_5")).arguments_as_text


def test_calls_at_once_without_their_results_are_refused_where_a_turn_has_one_call() -> None:
    row = replace(AT_ONCE, messages=AT_ONCE.messages[:2])

    with pytest.raises(InvalidRequest, match="Message 2 makes 2 calls at once") as caught:
        encode_row(row, tokenizer_of("llama3_1"), assistant_only=False)

    assert "one turn of each call" in (caught.value.hint or "")


def test_gpt_oss_stops_after_a_call() -> None:
    tokenizer = tokenizer_of("gptoss")

    assert end_of_calls(tokenizer) == "<|call|>"
    assert tokenizer.convert_tokens_to_ids("<|call|>") in end_token_ids(tokenizer, None)
    assert end_of_calls(tokenizer_of("glm4moe")) is None


def test_a_dataset_has_one_notice_of_the_plain_form() -> None:
    rows = [(1, CHAIN), (2, AT_ONCE)]

    formatted = format_rows(rows, tokenizer_of("our llama2"), assistant_only=False, max_length=10_000)

    assert [notice.code for notice in describe_rows(formatted)] == ["plain_functions"]


def test_a_template_for_functions_is_used_where_a_tokenizer_has_two() -> None:
    tokenizer = with_controls(CHATML, template=None)
    default = "{% for message in messages %}{{ message.role + message.content + '<|im_end|>' }}{% endfor %}"
    tokenizer.chat_template = {"default": default, "tool_use": HERMES}
    set_template(tokenizer)

    with_tools = render(tokenizer, CHAIN.messages, add_generation_prompt=False, tools=TOOLS)
    without = render(tokenizer, (QUESTION, ANSWER), add_generation_prompt=False)

    assert "Here are the available tools: <tools> " in with_tools
    assert without == "userHow high is it?<|im_end|>assistantIt is 1.2 m high.<|im_end|>"


def test_the_plain_form_changes_nothing_of_other_conversations() -> None:
    tokenizer = tokenizer_of("our llama2")
    plain = render(tokenizer, (QUESTION, ANSWER), add_generation_prompt=False)
    encode_row(CHAIN, tokenizer, assistant_only=False)

    assert render(tokenizer, (QUESTION, ANSWER), add_generation_prompt=False) == plain
    assert plain == "<s>[INST] How high is it? [/INST] It is 1.2 m high. </s>"
