import json
from pathlib import Path

import pytest

from app.core.engine.messages import Failed, ReasoningDelta, TokenDelta, ToolCallDelta
from tests.cli.conftest import Run, json_of
from tests.fakes import FINISHED, FakeEngine


def test_an_adapter_generates_an_answer(run: Run, serving: FakeEngine) -> None:
    assert run("generate", "helper", "Who?", "--system", "Be kind.", "--temperature", "0").stdout == "Hello\n"
    (asked,) = serving.requests
    assert [(turn.role, turn.content) for turn in asked.messages or []] == [
        ("system", "Be kind."),
        ("user", "Who?"),
    ]
    assert asked.sampling.temperature == 0


def test_a_question_may_come_from_a_pipe_and_the_answer_be_json(run: Run, serving: FakeEngine) -> None:
    assert json_of(run("generate", "helper", "--raw", "--json", stdin="Once\n"))["text"] == "Hello"
    assert serving.requests[0].prompt == "Once"


def test_an_answer_that_breaks_off_is_an_error(run: Run, serving: FakeEngine) -> None:
    serving.script = [TokenDelta(text="Hel"), Failed(kind="unavailable", code="gpu_taken", message="Gone.")]
    ended = run("generate", "helper", "Who?")
    assert ended.exit_code == 1
    assert "Error: Gone." in ended.stderr


def test_an_answer_cut_at_the_limit_says_so(run: Run, serving: FakeEngine) -> None:
    serving.script = [TokenDelta(text="Hi"), FINISHED.model_copy(update={"finish_reason": "length"})]
    assert "--max-new-tokens allows more" in run("generate", "helper", "Who?").stderr


def test_an_unknown_adapter_or_model_is_not_found(run: Run) -> None:
    assert run("generate", "unknown", "Who?").exit_code == 5


def test_thoughts_are_for_the_person_and_not_part_of_the_answer(run: Run, serving: FakeEngine) -> None:
    serving.script = [
        ReasoningDelta(text="Hm, "),
        ReasoningDelta(text="yes."),
        TokenDelta(text="Hi"),
        FINISHED,
    ]
    ended = run("generate", "helper", "Who?")
    assert ended.stdout == "Hi\n"
    assert ended.stderr.startswith("Hm, yes.\n")
    assert json_of(run("generate", "helper", "Who?", "--json"))["reasoning"] == "Hm, yes."


def test_functions_are_offered_and_each_call_is_a_line(run: Run, serving: FakeEngine, tmp_path: Path) -> None:
    functions = tmp_path / "functions.json"
    functions.write_text(json.dumps([{"type": "function", "function": {"name": "get_tide"}}]))
    serving.script = [
        ToolCallDelta(index=0, id="abc", name="get_tide", arguments='{"place": '),
        ToolCallDelta(index=0, arguments='"east quay"}'),
        ToolCallDelta(index=1, id="abd", name="get_tide"),
        ToolCallDelta(index=1, is_withdrawn=True),
        FINISHED.model_copy(update={"finish_reason": "tool_calls"}),
    ]

    ended = run("generate", "helper", "How high?", "--tools", str(functions))

    assert ended.stdout == 'get_tide {"place": "east quay"}\n'
    (asked,) = serving.requests
    assert asked.tools is not None
    assert [function.name for function in asked.tools.offered] == ["get_tide"]


@pytest.mark.parametrize("text", [None, "[{", "{}"])
def test_a_file_of_functions_that_is_none_is_wrong_usage(run: Run, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "functions.json"
    if text is not None:
        file.write_text(text)
    ended = run("generate", "helper", "How high?", "--tools", str(file))
    assert ended.exit_code == 2
    assert "functions.json" in ended.stderr
