"""Padding columns have one user, and are no part of the matrix."""

import torch

from worker.training.optimizations.lora import padded_columns


def test_padding_is_taken_once_and_views_have_none() -> None:
    matrix_TI = padded_columns.mark_padding(torch.zeros(3, 6)[:, :4], 2)

    assert padded_columns.take_padding(matrix_TI[:]) == 0
    assert padded_columns.take_padding(matrix_TI) == 2
    assert padded_columns.take_padding(matrix_TI) == 0


def test_writing_the_padding_does_not_change_the_matrix() -> None:
    whole = torch.zeros(3, 6)
    matrix_TI = whole[:, :4]
    version = matrix_TI._version

    padded_columns.with_padding(matrix_TI, 2)[:, 4:] = 1

    assert not matrix_TI.any()
    assert whole[:, 4:].all()
    assert matrix_TI._version == version
