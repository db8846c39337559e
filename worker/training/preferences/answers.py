"""Which tokens of a batch belong to which answer.

B: sequences in a batch. L: tokens of a padded sequence. N: learned tokens of a batch.
"""

import torch

from worker.training.memory import Batch, count_rows


def sum_by_sequence(values_N: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The sums [B] of the learned tokens' values, by sequence, in float32.

    Added in float64, so that the order of additions, which a GPU does not promise, does not show.
    """
    sums_B = values_N.new_zeros(count_rows(batch), dtype=torch.float64)
    return sums_B.index_add(0, find_sequences(batch), values_N.double()).float()


def count_tokens_of_answers(batch: Batch) -> torch.Tensor:
    """The number [B] of learned tokens of each sequence."""
    sequence_N = find_sequences(batch)
    ones_N = torch.ones_like(sequence_N, dtype=torch.float64)
    return ones_N.new_zeros(count_rows(batch)).index_add(0, sequence_N, ones_N).float()


def find_sequences(batch: Batch) -> torch.Tensor:
    """The sequence [N] of each learned token, in a padded or a padding-free batch."""
    learned_N = batch["learned"]
    if "sequence_lengths" not in batch:
        return learned_N // batch["input_ids"].shape[1]
    ends_B = batch["sequence_lengths"].cumsum(0)
    return torch.searchsorted(ends_B, learned_N, right=True)
