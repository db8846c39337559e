"""The GPU that each rank sees."""

import pytest

from worker.training.ranks.rank import choose_gpu


@pytest.mark.parametrize(
    ("visible", "expected"), [("GPU-4,GPU-7", ["GPU-4", "GPU-7"]), (None, ["0", "1"]), ("", ["", ""])]
)
def test_a_rank_sees_its_own_of_the_devices_of_the_job(visible: str | None, expected: list[str]) -> None:
    assert [choose_gpu(rank, visible) for rank in range(2)] == expected
