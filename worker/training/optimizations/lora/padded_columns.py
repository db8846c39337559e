"""Column padding: free memory to the right of a matrix, in which one function may write further columns.

The padded matrix then takes part in one longer product in place of two. That memory is free is an attribute
of the tensor, which views and copies do not have.

T: rows. I: columns of the matrix.
"""

import torch

_PADDING = "_tunesmith_padding"


def mark_padding(matrix: torch.Tensor, padding: int) -> torch.Tensor:
    """Note on a tensor that `padding` elements are free behind each of its rows. Returns the tensor."""
    setattr(matrix, _PADDING, padding)
    return matrix


def take_padding(matrix: torch.Tensor) -> int:
    """Remove the note of a tensor. Returns how many elements are free behind each row, 0 without a note.

    It is removed so that the padding has one user, whose columns nobody overwrites.
    """
    padding: int = vars(matrix).pop(_PADDING, 0)
    return padding


def with_padding(matrix_TI: torch.Tensor, padding: int) -> torch.Tensor:
    """The matrix with its padding, [T, I + padding], for the one that took the padding."""
    length = matrix_TI.shape[1] + padding
    assert len(matrix_TI) == 1 or matrix_TI.stride() == (length, 1)
    # Through `data`: writing the padding does not change the matrix, but autograd would take it for a change.
    return matrix_TI.data.as_strided((len(matrix_TI), length), (length, 1))
