"""Room behind rows is lent once, and is no part of the matrix."""

import torch

from worker.training.optimizations.lora import room


def test_room_is_taken_once_and_views_have_none() -> None:
    matrix_TI = room.lend(torch.zeros(3, 6)[:, :4], 2)

    assert room.take(matrix_TI[:]) == 0
    assert room.take(matrix_TI) == 2
    assert room.take(matrix_TI) == 0


def test_what_is_written_behind_rows_changes_no_matrix() -> None:
    whole = torch.zeros(3, 6)
    matrix_TI = whole[:, :4]
    version = matrix_TI._version

    room.widen(matrix_TI, 2)[:, 4:] = 1

    assert not matrix_TI.any()
    assert whole[:, 4:].all()
    assert matrix_TI._version == version
