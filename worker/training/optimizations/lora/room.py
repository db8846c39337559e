"""Memory that is free behind the rows of a matrix: who makes it lends it, one function may write there.

What lies there next to the matrix makes one longer product of two.

T: rows. I: what of a row is the matrix's.
"""

import torch

_ROOM = "_tunesmith_room"


def lend(matrix: torch.Tensor, room: int) -> torch.Tensor:
    """The same tensor; behind each of its rows so many elements are free. Of views of it none is known."""
    setattr(matrix, _ROOM, room)
    return matrix


def take(matrix: torch.Tensor) -> int:
    """How many elements are free, 0: none. Once: another would write over what the first keeps."""
    room: int = vars(matrix).pop(_ROOM, 0)
    return room


def widen(matrix_TI: torch.Tensor, room: int) -> torch.Tensor:
    """Whole rows [T, I + room], of which the matrix is the first part. Only for who took that room."""
    length = matrix_TI.shape[1] + room
    assert len(matrix_TI) == 1 or matrix_TI.stride() == (length, 1)
    # Not as a view: what is written behind rows changes the matrix for nobody, and autograd would say so.
    return matrix_TI.data.as_strided((len(matrix_TI), length), (length, 1))
