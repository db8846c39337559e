from app.core.engine.messages import Failed, ReasoningDelta, TokenDelta
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
