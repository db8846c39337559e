"""What an adapter learns of calls is what the engine parses, with the chat templates of many families."""

import json

import pytest

from tests.worker.inference.answers.parsing import Part
from tests.worker.templates.test_functions import AT_ONCE, CHAIN, ONE_CALL, OURS, TOOLS, tokenizer_of
from tests.worker.templates.test_turns import learned
from tests.worker.templates.tool_templates import ALL_TEMPLATES
from worker.inference.answers.choice import find_answer_format
from worker.inference.answers.parser import AnswerParser
from worker.inference.answers.source import PieceKind
from worker.templates.renderer import control_ends, render

NAMES = [*ALL_TEMPLATES, *OURS]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_is_learned_is_parsed(name: str) -> None:
    assert calls_in(learned(CHAIN, tokenizer_of(name))[0], name) == [("get_tide", {"pier": "north"})]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONE_CALL])
def test_calls_at_once_that_are_learned_are_parsed(name: str) -> None:
    found = calls_in(learned(AT_ONCE, tokenizer_of(name))[0], name)

    assert found == [("get_tide", {"pier": "north"}), ("get_wind", {"pier": "south"})]


def calls_in(answer: str, name: str) -> list[tuple[str, dict[str, str]]]:
    """The calls of an answer, which ends before its end token, as in serving."""
    tokenizer = tokenizer_of(name)
    for end in control_ends(tokenizer):
        answer = answer.rstrip().removesuffix(end)
    answer_format = find_answer_format(tokenizer)
    prompt = render(tokenizer, CHAIN.messages[:1], add_generation_prompt=True, tools=TOOLS)
    is_thinking = answer_format.is_thinking_after(prompt) and "</think>" in answer
    parser = AnswerParser(answer_format, {tool.name: tool for tool in TOOLS}, is_thinking=is_thinking)
    parts: list[Part] = [
        (piece.kind, piece.text) for piece in (*parser.add(answer), *parser.finish(is_cut=False))
    ]
    found: list[list[str]] = []
    for kind, text in parts:
        if kind is PieceKind.CALL:
            found.append([text, ""])
        elif kind is PieceKind.ARGUMENTS:
            found[-1][1] += text
    return [(called, json.loads(arguments)) for called, arguments in found]
