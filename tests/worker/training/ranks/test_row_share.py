"""Which rows each rank reads, and the filler where a rank has none left."""

import pytest
from torch.utils.data import SequentialSampler

from worker.templates.token_rows import IGNORED, TokenRow
from worker.training.batches import Collator, PaddingFreeCollator, make_dataset
from worker.training.ranks.row_share import RowShare, add_filler, is_filler
from worker.training.ranks.world import ALONE, World


def share(rows: int, ranks: int, batch: int) -> list[list[list[int]]]:
    """The batches of each rank."""
    found = []
    for rank in range(ranks):
        order = RowShare(SequentialSampler(range(rows)), World(rank, ranks), batch=batch, filler=rows)
        indices = list(order)
        assert len(order) == len(indices)
        found.append([indices[start : start + batch] for start in range(0, len(indices), batch)])
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("rows", range(1, 15))
def test_each_row_is_read_once_in_as_many_batches_on_every_rank(rows: int, batch: int, ranks: int) -> None:
    of_ranks = share(rows, ranks, batch)

    assert len({len(batches) for batches in of_ranks}) == 1
    read = [row for batches in of_ranks for one in batches for row in one if row != rows]
    assert sorted(read) == list(range(rows))
    assert all(one == [rows] for batches in of_ranks for one in batches if rows in one)


def test_a_round_of_the_ranks_has_the_batches_that_one_process_reads_in_turn() -> None:
    assert share(7, ranks=2, batch=2) == [[[0, 1], [4, 5]], [[2, 3], [6]]]


@pytest.mark.parametrize("packed_length", [None, 8])
def test_nothing_is_learned_from_the_filler(packed_length: int | None) -> None:
    rows = [TokenRow(1, [1, 2, 3], [IGNORED, 2, 3]), TokenRow(2, [4, 5], [IGNORED, 5])]
    dataset = make_dataset(rows, packed_length=packed_length)

    with_filler = add_filler(dataset, World(0, 2))

    assert len(with_filler) == len(dataset) + 1
    assert add_filler(dataset, ALONE) is dataset
    for collate in (Collator(pad_token_id=0), PaddingFreeCollator()):
        assert is_filler(collate([with_filler[len(dataset)]]))
        assert not is_filler(collate([with_filler[0]]))
