"""How fast base models were on each path."""

from app.core.engine.messages import Finished, ServingPath, Timings, Usage
from app.core.engine.state import ServedPath
from tests.worker.inference.fakes import make_base
from worker.inference.speeds import Speeds


def finished(speed: float, tokens: int = 20) -> Finished:
    timings = Timings(queued_seconds=0, first_token_seconds=0, total_seconds=1, tokens_per_second=speed)
    return Finished(
        finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=tokens), timings=timings
    )


def test_the_mean_follows_the_last_answers_and_the_latest_base_model_is_last() -> None:
    speeds = Speeds()
    general = make_base("one").model_copy(update={"path": ServingPath.GENERAL})
    speeds.add(make_base("one"), None, finished(100))
    speeds.add(general, "sinks", finished(10))
    speeds.add(make_base("one"), None, finished(200))

    assert speeds.records == [
        ServedPath(base_model="one", path=ServingPath.GENERAL, reason="sinks", tokens_per_second=10),
        ServedPath(base_model="one", path=ServingPath.PAGED, tokens_per_second=120),
    ]


def test_an_answer_of_a_few_tokens_says_nothing_about_the_speed() -> None:
    speeds = Speeds()
    speeds.add(make_base("one"), None, finished(1, tokens=2))
    assert speeds.records[0].tokens_per_second is None

    speeds.add(make_base("one"), None, finished(50))
    speeds.add(make_base("one"), None, finished(1, tokens=2))
    assert speeds.records[0].tokens_per_second == 50


def test_only_the_base_models_used_last_are_remembered() -> None:
    speeds = Speeds()
    for index in range(40):
        speeds.add(make_base(f"{index}"), None, finished(1))

    assert [one.base_model for one in speeds.records] == [f"{index}" for index in range(8, 40)]
