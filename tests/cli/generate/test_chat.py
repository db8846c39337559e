import json

from app.core.engine.messages import ReasoningDelta, TokenDelta
from tests.cli.conftest import Run
from tests.fakes import FINISHED, FakeEngine


def test_a_chat_holds_its_turns_until_reset(run: Run, serving: FakeEngine) -> None:
    ended = run("chat", "helper", "--json", stdin="One?\nTwo?\n/reset\n\nThree?\n/exit\nFour?\n")
    assert [json.loads(line)["text"] for line in ended.stdout.splitlines()] == ["Hello"] * 3
    said = [[turn.content for turn in asked.messages or []] for asked in serving.requests]
    assert said == [["One?"], ["One?", "Hello", "Two?"], ["Three?"]]
    assert ended.exit_code == 0


def test_thoughts_are_not_part_of_the_conversation(run: Run, serving: FakeEngine) -> None:
    serving.script = [ReasoningDelta(text="Hm."), TokenDelta(text="Hi"), FINISHED]
    ended = run("chat", "helper", "--json", stdin="One?\nTwo?\n")
    assert [json.loads(line)["reasoning"] for line in ended.stdout.splitlines()] == ["Hm."] * 2
    assert [turn.content for turn in serving.requests[1].messages or []] == ["One?", "Hi", "Two?"]
