"""How closely the logits of two models agree, and the agreement that each export format requires. Pure.

L: positions. V: the vocabulary.
"""

import torch

from app.core.exports.results import Threshold
from app.core.specs.export import BaseWeights, CalibratedSpec, ExportSpec, Fp8Spec, GgufType

_SIXTEEN_BITS = Threshold(max_mean_kl=0.02, min_greedy_match=0.9, must_keep_adapter=True)
_FP8 = Threshold(max_mean_kl=0.1, min_greedy_match=0.8, must_keep_adapter=False)
_CALIBRATED = Threshold(max_mean_kl=0.6, min_greedy_match=0.55, must_keep_adapter=False)
_BY_TYPE = {
    GgufType.Q8_0: Threshold(max_mean_kl=0.05, min_greedy_match=0.85, must_keep_adapter=True),
    GgufType.Q5_1: Threshold(max_mean_kl=0.25, min_greedy_match=0.7, must_keep_adapter=False),
    GgufType.Q5_0: Threshold(max_mean_kl=0.25, min_greedy_match=0.7, must_keep_adapter=False),
    GgufType.Q4_1: Threshold(max_mean_kl=0.6, min_greedy_match=0.55, must_keep_adapter=False),
    GgufType.Q4_0: Threshold(max_mean_kl=0.6, min_greedy_match=0.55, must_keep_adapter=False),
    GgufType.Q6_K: Threshold(max_mean_kl=0.1, min_greedy_match=0.8, must_keep_adapter=False),
    GgufType.Q5_K_M: Threshold(max_mean_kl=0.25, min_greedy_match=0.7, must_keep_adapter=False),
    GgufType.Q4_K_M: Threshold(max_mean_kl=0.6, min_greedy_match=0.55, must_keep_adapter=False),
    GgufType.IQ4_XS: Threshold(max_mean_kl=0.6, min_greedy_match=0.55, must_keep_adapter=False),
    GgufType.Q3_K_M: Threshold(max_mean_kl=1.0, min_greedy_match=0.4, must_keep_adapter=False),
}
# The adapter was trained on 4-bit base weights and is merged into the 16-bit originals: the difference is
# that between 4-bit and 16-bit weights.
_ORIGINAL_BASE = Threshold(max_mean_kl=0.6, min_greedy_match=0.55, must_keep_adapter=False)


def find_threshold(spec: ExportSpec, type: GgufType | None, *, trained_in_4bit: bool) -> Threshold:
    """The threshold that a model of an export must reach; the looser one where two apply.

    `type` is that of a GGUF file.
    """
    found = _FP8 if isinstance(spec, Fp8Spec) else _SIXTEEN_BITS
    found = _CALIBRATED if isinstance(spec, CalibratedSpec) else found
    found = found if type is None else _BY_TYPE.get(type, found)
    is_original = getattr(spec, "base", None) is BaseWeights.ORIGINAL
    if is_original and getattr(spec, "content", "merged") == "adapter":
        is_original = False
    if is_original and trained_in_4bit:
        return max(found, _ORIGINAL_BASE, key=lambda threshold: threshold.max_mean_kl)
    return found


class LogitComparison:
    """Differences between the logits of two models, accumulated over the positions of many prompts."""

    def __init__(self) -> None:
        self.positions = 0
        self.max_difference = 0.0
        self._difference = 0.0
        self._kl = 0.0
        self._matches = 0

    def add(self, live_LV: torch.Tensor, found_LV: torch.Tensor) -> None:
        """Compare the logits of one prompt's positions and add them to the totals."""
        difference_LV = (live_LV - found_LV).abs()
        live, found = live_LV.log_softmax(-1), found_LV.log_softmax(-1)
        self.positions += len(live_LV)
        self.max_difference = max(self.max_difference, difference_LV.max().item())
        self._difference += difference_LV.mean(-1).sum().item()
        self._kl += (live.exp() * (live - found)).sum(-1).clamp(min=0).sum().item()
        self._matches += int((live_LV.argmax(-1) == found_LV.argmax(-1)).sum())

    @property
    def mean_difference(self) -> float:
        """The mean absolute difference of all logits."""
        return self._difference / self.positions

    @property
    def mean_kl(self) -> float:
        """The mean KL divergence of the next-token distributions, in nats."""
        return self._kl / self.positions

    @property
    def greedy_match(self) -> float:
        """The share of positions at which both models have the same most likely token."""
        return self._matches / self.positions
