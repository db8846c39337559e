"""Which graph a step runs with, and when one is captured: pools that capture nothing, so without a GPU."""

from collections.abc import Callable

import pytest
import torch

from worker.inference.model.step_graphs import _STEPS_BEFORE_CAPTURE, StepGraphs


class Recorder:
    """A forward pass, and a pool whose graphs run it again; both record the size and the slots."""

    def __init__(self) -> None:
        self.slot_count = 0
        self.captured: list[tuple[int, int]] = []
        self.replayed: list[tuple[int, int]] = []
        self.lacks_memory = False
        self.is_refused = False

    def forward(self, size: int) -> torch.Tensor:
        return torch.tensor([size, self.slot_count])

    def capture(self, work: Callable[[], torch.Tensor]) -> "Replay":
        if self.lacks_memory:
            raise torch.OutOfMemoryError("no memory")
        if self.is_refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        size, slot_count = work().tolist()
        self.captured.append((size, slot_count))
        return Replay(self, (size, slot_count))


class Replay:
    def __init__(self, recorder: Recorder, key: tuple[int, int]) -> None:
        self._recorder, self._key = recorder, key

    def replay(self) -> torch.Tensor:
        self._recorder.replayed.append(self._key)
        return torch.tensor(self._key)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def graphs(recorder: Recorder) -> StepGraphs:
    """Captured for no adapter and for 8 slots."""
    graphs = StepGraphs(recorder.forward, [1, 4], lambda: recorder)
    for slot_count in (8, 0):
        recorder.slot_count = slot_count
        graphs.capture_all(slot_count)
    recorder.captured.clear()
    return graphs


def run(graphs: StepGraphs, recorder: Recorder, needed: int, slot_count: int) -> None:
    recorder.slot_count = slot_count
    graphs.run(needed, slot_count)


def test_a_step_runs_with_its_own_number_of_slots_where_that_is_captured(graphs, recorder):
    run(graphs, recorder, 3, 8)
    run(graphs, recorder, 1, 0)

    assert recorder.replayed == [(4, 8), (1, 0)]
    assert recorder.captured == []


def test_another_number_of_slots_is_captured_once_many_steps_have_needed_it(graphs, recorder):
    for _ in range(_STEPS_BEFORE_CAPTURE):
        run(graphs, recorder, 3, 2)
    assert (set(recorder.replayed), recorder.captured) == ({(4, 8)}, [])

    run(graphs, recorder, 3, 2)
    run(graphs, recorder, 3, 1)

    assert recorder.captured == [(4, 2)]
    # The fewest slots that are enough.
    assert recorder.replayed[-2:] == [(4, 2), (4, 2)]


def test_a_number_of_slots_larger_than_all_captured_is_captured_at_once(graphs, recorder):
    run(graphs, recorder, 1, 16)

    assert (recorder.captured, recorder.replayed) == ([(1, 16)], [(1, 16)])


def test_a_graph_that_memory_lacks_for_is_replaced_by_one_with_more_slots(graphs, recorder):
    recorder.lacks_memory = True
    for _ in range(2 * _STEPS_BEFORE_CAPTURE):
        run(graphs, recorder, 1, 1)

    assert set(recorder.replayed) == {(1, 8)}
    with pytest.raises(torch.OutOfMemoryError):
        run(graphs, recorder, 1, 16)


def test_a_pass_whose_capture_fails_has_the_size_that_its_inputs_are_set_for(recorder):
    graphs = StepGraphs(recorder.forward, [1, 4], lambda: recorder)
    recorder.is_refused = True

    assert graphs.size(3) == 4
    assert graphs.run(3, 0).tolist() == [4, 0]
    assert graphs.size(3) is None
