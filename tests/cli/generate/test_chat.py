import json

from tests.cli.conftest import Run
from tests.fakes import FakeEngine


def test_a_chat_holds_its_turns_until_reset(run: Run, serving: FakeEngine) -> None:
    ended = run("chat", "helper", "--json", stdin="One?\nTwo?\n/reset\n\nThree?\n/exit\nFour?\n")
    assert [json.loads(line)["text"] for line in ended.stdout.splitlines()] == ["Hello"] * 3
    said = [[turn.content for turn in asked.messages or []] for asked in serving.requests]
    assert said == [["One?"], ["One?", "Hello", "Two?"], ["Three?"]]
    assert ended.exit_code == 0
