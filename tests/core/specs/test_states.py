import pytest

from app.core.specs.states import ENDED, UNFINISHED, WorkState


@pytest.mark.parametrize("states", WorkState.__subclasses__())
def test_every_state_of_work_is_final_or_not(states: type[WorkState]) -> None:
    assert {state.value for state in states} <= ENDED | UNFINISHED
    assert {state for state in states if state.has_ended} == ENDED
