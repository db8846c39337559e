"""An export's files, and how well they agree with the live adapter. Knows no database and no torch."""

import re

from pydantic import BaseModel, ConfigDict, Field

# The divergence, in nats, that 16-bit weights alone cause where an adapter changes next to nothing.
_NOISE = 1e-3
_STEM_LENGTH = 100


class Threshold(BaseModel):
    """What an export must reach."""

    model_config = ConfigDict(extra="forbid")

    max_mean_kl: float = Field(description="Most that the mean divergence may be, in nats.")
    min_greedy_match: float = Field(description="Least share of positions with the same most likely token.")
    must_keep_adapter: bool = Field(
        description="Whether it must be nearer to the live adapter than half the way to the base model."
    )


class Agreement(BaseModel):
    """The produced files beside the live adapter, on the same tokens."""

    model_config = ConfigDict(extra="forbid")

    prompts: int = Field(description="Prompts that both answered.")
    positions: int = Field(description="Next tokens that were compared.")
    max_abs_logit_difference: float = Field(description="The largest difference of any logit.")
    mean_abs_logit_difference: float = Field(description="The mean difference of all logits.")
    mean_kl: float = Field(description="Mean Kullback-Leibler divergence of the next token, in nats.")
    greedy_match: float = Field(description="Share of positions with the same most likely token.")
    answers_equal: float = Field(description="Share of prompts with the same greedy answer, token by token.")
    adapter_kl: float = Field(description="The same divergence of the base model without the adapter.")
    threshold: Threshold = Field(description="What was needed.")
    loaded_with: str = Field(description="What loaded the files.")
    computed_in: str = Field(description="Type of the numbers in which both were computed.")

    @property
    def mismatch(self) -> str | None:
        """Why the agreement is below the threshold, in words for a message, or None."""
        least = self.threshold
        if not self.mean_kl <= least.max_mean_kl:
            return f"the mean divergence is {self.mean_kl:.4g} nats, where {least.max_mean_kl:g} is allowed"
        if self.greedy_match < least.min_greedy_match:
            return (
                f"the most likely token is the same at {self.greedy_match:.0%} of the positions, where "
                f"{least.min_greedy_match:.0%} is needed"
            )
        if least.must_keep_adapter and self.mean_kl > max(self.adapter_kl / 2, _NOISE):
            return (
                f"it is {self.mean_kl:.2g} nats away from the live adapter, and the base model without any "
                f"adapter no more than {self.adapter_kl:.2g}: what was trained is lost"
            )
        return None


def file_stem(adapter_name: str) -> str:
    """Returns an adapter's name as part of a file name, without the colons and slashes of OpenAI's names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", adapter_name)[:_STEM_LENGTH].strip(".-") or "adapter"


class ExportedFile(BaseModel):
    """One file of an export."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Its name, for `?file=`.")
    size_bytes: int = Field(description="Its size.")
    sha256: str = Field(description="SHA-256 of its content, in hex.")
    agreement: Agreement | None = Field(
        None, description="How well this file agrees with the live adapter, where it is a model of its own."
    )
