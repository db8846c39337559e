"""How long a step may take follows from the steps before."""

from worker.inference.batching.step_limit import StepLimit


def make_limit(*steps: tuple[int, float]) -> StepLimit:
    limit = StepLimit()
    for tokens, seconds in [(1, 100.0)] * 3 + list(steps):
        limit.record(tokens, seconds)
    return limit


def test_the_first_steps_may_compile_for_minutes_and_are_no_measure() -> None:
    limit = StepLimit()
    for _ in range(3):
        assert limit.of(1) == 600
        limit.record(1, 100.0)
    limit.record(1, 0.01)

    assert limit.of(1) == 10


def test_a_long_prompt_on_a_slow_machine_may_take_long() -> None:
    limit = make_limit((4, 1.0))

    assert (limit.of(1), limit.of(40), limit.of(10_000)) == (10, 100, 25_000)


def test_a_long_prompt_may_take_long_before_the_speed_is_known() -> None:
    assert (StepLimit().of(500), StepLimit().of(10_000)) == (600, 10_000)


def test_one_slow_step_is_forgotten() -> None:
    limit = make_limit((1, 60.0), *[(1, 0.01)] * 60)

    assert limit.of(1) == 10


def test_a_step_of_no_tokens_is_no_measure() -> None:
    assert make_limit((4, 1.0), (0, 9.0)).of(40) == 100
