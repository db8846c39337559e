"""The positions of a verifying step, which computes a row's next token and one after each drafted token.

Shape letters: B rows of the step, W positions of the row that has most, N positions of all rows in order, V
vocabulary.
"""

from collections.abc import Sequence as Listed

import torch

from worker.models.device import on_device

# Differs from NO_TOKEN, which is sampled where scores are not finite.
_NO_DRAFT = -2


class DraftedPositions:
    """Where the positions of each row are, and the drafted token that each one's sampled token must equal.

    Offset 0 of a row is its next token; the position at offset w comes after w drafted tokens.
    """

    def __init__(self, rows: Listed[int], drafts: Listed[Listed[int]], device: torch.device) -> None:
        """`rows` ascend; `drafts`: the drafted tokens of each, which may be none."""
        counts = [len(draft) + 1 for draft in drafts]
        places = [(place, offset) for place, count in enumerate(counts) for offset in range(count)]
        # Each row in the batch by position.
        self.rows = [rows[place] for place, _ in places]
        self.width = max(counts)
        firsts = [sum(counts[:place]) for place in range(len(counts))]
        steps = range(self.width)
        parts = [
            [place for place, _ in places],
            [offset for _, offset in places],
            self.rows,
            list(rows),
            [first + min(w, n - 1) for first, n in zip(firsts, counts, strict=True) for w in steps],
            [draft[w] if w < len(draft) else _NO_DRAFT for draft in drafts for w in steps],
        ]
        packed = on_device(torch.tensor([one for part in parts for one in part]), device)
        places_N, offsets_N, rows_N, rows_B, index_X, drafts_X = packed.split([len(part) for part in parts])
        self._places_N = places_N
        self.offsets_N, self.rows_N, self.rows_B = offsets_N, rows_N, rows_B
        # The index in N of each position, the row's last one where it has fewer.
        self.index_BW = index_X.view(-1, self.width)
        # The drafted token that follows each position.
        self._drafts_BW = drafts_X.view(-1, self.width)

    def earlier_drafts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The drafted tokens before each position [N, W], 0 where there are fewer, and which are there."""
        offsets_W = torch.arange(self.width, device=self.offsets_N.device)
        is_earlier_NW = offsets_W < self.offsets_N[:, None]
        return self._drafts_BW[self._places_N].where(is_earlier_NW, 0), is_earlier_NW

    def accepted_counts(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """How many drafted tokens of each row were sampled, up to the first that was not, [B]."""
        is_equal_BW = tokens_N[self.index_BW] == self._drafts_BW
        return is_equal_BW.long().cumprod(1).sum(1)
