"""Replies of an answer, token by token: special tokens that decoding drops, stops, log-probabilities."""

from functools import partial

import pytest

from app.core.engine.messages import (
    BaseModelRef,
    ChatMessage,
    Delta,
    GenerateRequest,
    MadeToken,
    ReasoningDelta,
    Reply,
    TokenDelta,
    ToolCallDelta,
    Tools,
    join_deltas,
)
from app.core.specs.job import QuantizationSpec
from tests.worker.families import with_controls
from tests.worker.inference.answers.parsing import TIME, WEATHER
from tests.worker.inference.answers.test_families import CALL, CALL_END, CALLS, CALLS_END, DEEPSEEK, SEP
from tests.worker.templates.test_families import published
from worker.inference.answers.answer_text import ParsedAnswer
from worker.inference.answers.choice import find_parsed_format
from worker.inference.preprocessing import decode

END = "<|endoftext|>"
QUESTION = [ChatMessage(role="user", content="Hot?")]
TOKENIZERS = {
    "llama": with_controls(("<|end_of_text|>", "<|python_tag|>"), template=published("llama3_1")),
    "qwen": with_controls((END, "<think>", "</think>"), template=published("qwen3")),
    "gpt-oss": with_controls(
        ("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>"),
        template=published("gptoss"),
    ),
    "deepseek": with_controls((END, CALLS, CALL, SEP, CALL_END, CALLS_END), template=DEEPSEEK),
    "mistral": with_controls((END, "[TOOL_CALLS]", "[ARGS]"), template="[TOOL_CALLS][ARGS]"),
}


def make_text(
    name: str,
    *,
    tools: bool = True,
    parallel: bool = True,
    stops: tuple[str, ...] = (),
    rendered: str = "",
) -> ParsedAnswer:
    tokenizer = TOKENIZERS[name]
    request = GenerateRequest(
        base_model=BaseModelRef(name="base", quantization=QuantizationSpec()),
        messages=QUESTION,
        tools=Tools(functions=[WEATHER, TIME], parallel=parallel) if tools else None,
    )
    parsed = find_parsed_format(tokenizer, request, rendered)
    assert parsed is not None
    return ParsedAnswer(partial(decode, tokenizer), parsed, stops)


def replies_of(
    name: str, answer: str, *, with_logprobs: bool = False, made: ParsedAnswer | None = None
) -> list[Reply]:
    """The joined replies to the tokens of an answer."""
    text = made or make_text(name)
    deltas: list[Delta] = []
    for token_id in TOKENIZERS[name](answer, add_special_tokens=False).input_ids:
        token = MadeToken(token_id=token_id, bytes=[], logprob=-1, top=[]) if with_logprobs else None
        deltas += text.add(token_id, token)
        if text.is_over:
            break
    deltas += text.finish(is_cut=False)
    return join_deltas([*deltas])


def calls_of(replies: list[Reply]) -> list[tuple[str | None, str]]:
    return [(reply.name, reply.arguments) for reply in replies if isinstance(reply, ToolCallDelta)]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Zürich"}}'),
        ("qwen", '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'),
        (
            "gpt-oss",
            "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
            '{"city": "Zürich"}<|call|>',
        ),
        (
            "deepseek",
            f'{CALLS}{CALL}function{SEP}weather\n```json\n{{"city": "Zürich"}}\n```{CALL_END}{CALLS_END}',
        ),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Zürich"}'),
    ],
)
def test_special_tokens_are_seen_by_the_parser_and_by_no_client(name: str, answer: str) -> None:
    replies = replies_of(name, answer)
    assert calls_of(replies) == [("weather", '{"city": "Zürich"}')]
    assert len(replies) == 1


def test_each_call_has_an_id_that_mistrals_templates_accept() -> None:
    replies = replies_of("mistral", "[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]time[ARGS]{}")
    ids = [reply.id for reply in replies if isinstance(reply, ToolCallDelta)]
    assert len(set(ids)) == 2
    assert all(id_ is not None and len(id_) == 9 and id_.isalnum() for id_ in ids)


def test_without_parallel_calls_the_first_one_ends_the_answer() -> None:
    text = make_text("mistral", parallel=False)
    replies = replies_of("mistral", "[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]time[ARGS]{}", made=text)
    assert calls_of(replies) == [("time", "{}")]
    assert text.is_over
    assert text.has_calls


def test_stop_strings_count_in_the_text_alone() -> None:
    text = make_text("qwen", stops=("b", "city"))
    answer = (
        '<think>a b</think>\n\na<tool_call>{"name": "weather", "arguments": {"city": "b"}}</tool_call>a b c'
    )
    replies = replies_of("qwen", answer, made=text)
    assert isinstance(replies[0], ReasoningDelta)
    assert replies[0].text == "a b"
    assert calls_of(replies) == [("weather", '{"city": "b"}')]
    assert [reply.text for reply in replies if isinstance(reply, TokenDelta)] == ["a", "a "]
    assert text.is_over


def test_log_probabilities_go_with_thoughts_and_text_and_not_with_markers() -> None:
    answer = "<think>\nab\n</think>\n\ncd"
    thoughts, text = replies_of("qwen", answer, with_logprobs=True)
    letters = TOKENIZERS["qwen"]("abcd").input_ids
    assert isinstance(thoughts, ReasoningDelta)
    assert isinstance(text, TokenDelta)
    assert [token.token_id for token in thoughts.tokens or []] == letters[:2]
    assert [token.token_id for token in text.tokens or []] == letters[2:]


def test_tokens_of_a_stop_string_are_not_sent() -> None:
    text = make_text("qwen", stops=("cd",))
    (reply,) = replies_of("qwen", "abcd", with_logprobs=True, made=text)
    assert isinstance(reply, TokenDelta)
    assert [token.token_id for token in reply.tokens or []] == TOKENIZERS["qwen"]("ab").input_ids


def test_thoughts_are_counted_with_their_markers() -> None:
    text = make_text("qwen", tools=False)
    replies_of("qwen", "<think>abc</think>de", made=text)
    assert text.reasoning_token_count == 5


def test_thoughts_that_the_prompt_opened_are_counted_from_the_first_token() -> None:
    text = make_text("qwen", tools=False, rendered="<|im_start|>assistant\n<think>\n")
    replies = replies_of("qwen", "abc</think>de", made=text)
    assert [type(reply) for reply in replies] == [ReasoningDelta, TokenDelta]
    assert text.reasoning_token_count == 4


def test_an_answer_that_can_hold_text_alone_is_not_parsed() -> None:
    request = GenerateRequest(
        base_model=BaseModelRef(name="base", quantization=QuantizationSpec()),
        messages=QUESTION,
        tools=Tools(functions=[TIME], choice="none"),
    )
    assert find_parsed_format(TOKENIZERS["llama"], request, "") is None
    assert find_parsed_format(TOKENIZERS["qwen"], request, "") is not None


def test_a_tokenizer_of_mistrals_library_names_its_special_tokens_only() -> None:
    class Library:
        """What transformers' MistralCommonBackend has of it."""

        chat_template = None
        all_special_tokens = ("[TOOL_CALLS]", "[ARGS]")
        all_special_ids = (5, 6)

        @property
        def added_tokens_decoder(self) -> dict[int, str]:
            raise NotImplementedError

    request = GenerateRequest(
        base_model=BaseModelRef(name="base", quantization=QuantizationSpec()),
        messages=QUESTION,
        tools=Tools(functions=[TIME]),
    )
    parsed = find_parsed_format(Library(), request, "")  # type: ignore[arg-type]
    assert parsed is not None
    assert parsed.markers == {5: "[TOOL_CALLS]", 6: "[ARGS]"}
