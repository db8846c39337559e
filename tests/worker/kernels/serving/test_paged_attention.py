"""The attention kernels against attention in torch in float32, over blocks in any order."""

import pytest
import torch

from worker.kernels.serving import paged_attention, prompt_attention
from worker.kernels.serving.paged_attention import AttentionSettings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK_TOKENS, BLOCKS_PER_ROW, KEY_HEADS = 4, 40, 2
LENGTHS = [1, 7, 64, 75, 150]
SETTINGS = {
    "plain": AttentionSettings(0.3),
    "window": AttentionSettings(0.3, window=9),
    "soft cap": AttentionSettings(0.3, softcap=2.0),
}


class Case:
    """Rows of keys and values, stored in shuffled blocks by the kernel under test."""

    def __init__(self, *, heads: int, dimension: int = 24) -> None:
        torch.manual_seed(0)
        self.heads, self.dimension = heads, dimension
        blocks = torch.randperm(len(LENGTHS) * BLOCKS_PER_ROW, device=DEVICE).int() + 1
        self.block_tables_RP = blocks.view(len(LENGTHS), BLOCKS_PER_ROW)
        shape = (len(blocks) + 1, BLOCK_TOKENS, KEY_HEADS, dimension)
        self.keys_PSGD, self.values_PSGD = (torch.full(shape, float("nan"), device=DEVICE) for _ in range(2))
        self.key, self.value = (
            [torch.randn(KEY_HEADS, length, dimension, device=DEVICE) for length in LENGTHS] for _ in range(2)
        )
        rows = [row for row, length in enumerate(LENGTHS) for _ in range(length)]
        positions = [position for length in LENGTHS for position in range(length)]
        paged_attention.store(
            torch.cat(self.key, 1),
            torch.cat(self.value, 1),
            self.keys_PSGD,
            self.values_PSGD,
            self.block_tables_RP,
            torch.tensor(rows, device=DEVICE),
            torch.tensor(positions, device=DEVICE),
        )

    def queries(self, count: int) -> torch.Tensor:
        # As models make them: tokens first in memory, heads first in shape.
        return torch.randn(count, self.heads, self.dimension, device=DEVICE).transpose(0, 1)

    def expected(
        self, query_HD: torch.Tensor, row: int, position: int, settings: AttentionSettings
    ) -> torch.Tensor:
        first = max(0, position + 1 - settings.window) if settings.window else 0
        group = self.heads // KEY_HEADS
        keys_HLD = self.key[row][:, first : position + 1].repeat_interleave(group, 0)
        values_HLD = self.value[row][:, first : position + 1].repeat_interleave(group, 0)
        scores_HL = torch.einsum("hd,hld->hl", query_HD, keys_HLD) * settings.scale
        if settings.softcap:
            scores_HL = settings.softcap * torch.tanh(scores_HL / settings.softcap)
        return torch.einsum("hl,hld->hd", scores_HL.softmax(-1), values_HLD)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("enough_programs", [1, 64], ids=["whole", "split"])
def test_each_row_sees_its_own_keys_up_to_its_position(settings, heads, enough_programs, monkeypatch):
    monkeypatch.setattr(paged_attention, "_ENOUGH_PROGRAMS", enough_programs)
    case = Case(heads=heads)
    query_HND = case.queries(len(LENGTHS))
    positions = torch.tensor(LENGTHS, device=DEVICE) - 1

    out_NHD = paged_attention.decode(
        query_HND, case.keys_PSGD, case.values_PSGD, case.block_tables_RP, positions, settings
    )

    expected = [
        case.expected(query_HND[:, row], row, length - 1, settings) for row, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(out_NHD, torch.stack(expected), atol=2e-5, rtol=1e-4)


def test_positions_of_one_row_may_be_rows_of_their_own(monkeypatch):
    monkeypatch.setattr(paged_attention, "_ENOUGH_PROGRAMS", 1)
    case, settings = Case(heads=6), SETTINGS["window"]
    places = [(3, 70), (3, 71), (3, 74), (1, 6), (2, 0)]
    query_HND = case.queries(len(places))
    rows, positions = torch.tensor(places, device=DEVICE).T.contiguous()

    out_NHD = paged_attention.decode(
        query_HND, case.keys_PSGD, case.values_PSGD, case.block_tables_RP[rows], positions, settings
    )

    expected = [case.expected(query_HND[:, index], *place, settings) for index, place in enumerate(places)]
    torch.testing.assert_close(out_NHD, torch.stack(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("heads", "dimension"), [(2, 24), (6, 24), (6, 32)])
def test_chunks_of_prompts_see_what_came_before_and_nothing_later(settings, heads, dimension):
    case = Case(heads=heads, dimension=dimension)
    chunks = [(3, 5, 70), (1, 0, 7), (4, 70, 80), (2, 63, 1)]
    query_HND = case.queries(sum(count for _, _, count in chunks))
    tiles = torch.tensor(prompt_attention.tiles(chunks), dtype=torch.int32, device=DEVICE)

    out_NHD = prompt_attention.attend(
        query_HND, case.keys_PSGD, case.values_PSGD, case.block_tables_RP, tiles, settings
    )

    places = [(row, start + index) for row, start, count in chunks for index in range(count)]
    expected = [
        case.expected(query_HND[:, token], row, position, settings)
        for token, (row, position) in enumerate(places)
    ]
    torch.testing.assert_close(out_NHD, torch.stack(expected), atol=2e-5, rtol=1e-4)
