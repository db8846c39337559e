"""Sums over rated answers, added up on the device, and the figures of an event that are made of them."""

from collections.abc import Sequence

import torch

# What is added up: examples, and those of them that are in the right order; of good and of bad answers each
# how many, their rewards and their log-probabilities.
LENGTH = 8


def add_up(
    reward_B: torch.Tensor, log_prob_B: torch.Tensor, is_good_B: torch.Tensor, is_right_E: torch.Tensor
) -> torch.Tensor:
    """The sums of a batch, [LENGTH], on its device. B: answers. E: examples."""
    ones_B = torch.ones_like(reward_B)
    values = [ones_B, reward_B, log_prob_B]
    of_kinds = [
        torch.where(kind_B, value_B, 0).sum() for kind_B in (is_good_B, ~is_good_B) for value_B in values
    ]
    counts = [torch.ones_like(is_right_E, dtype=reward_B.dtype).sum(), is_right_E.to(reward_B.dtype).sum()]
    return torch.stack([*counts, *of_kinds]).double()


def nothing(device: torch.device) -> torch.Tensor:
    """The sums of no answers."""
    return torch.zeros(LENGTH, dtype=torch.float64, device=device)


def figures(sums: Sequence[float]) -> dict[str, float | None]:
    """The fields of PreferenceFigures; none where nothing was added up."""
    if not sums or not sums[0]:
        return {}
    examples, right, *of_kinds = sums
    chosen_reward, chosen_log_prob = _means(of_kinds[:3])
    rejected_reward, rejected_log_prob = _means(of_kinds[3:])
    has_both = chosen_reward is not None and rejected_reward is not None
    return {
        "reward_chosen": chosen_reward,
        "reward_rejected": rejected_reward,
        "reward_margin": chosen_reward - rejected_reward if has_both else None,  # type: ignore[operator]
        "reward_accuracy": right / examples,
        "log_prob_chosen": chosen_log_prob,
        "log_prob_rejected": rejected_log_prob,
    }


def _means(sums: Sequence[float]) -> tuple[float | None, float | None]:
    count, reward, log_prob = sums
    return (reward / count, log_prob / count) if count else (None, None)
