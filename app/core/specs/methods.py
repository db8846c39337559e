"""How a job learns: from answers to imitate (`sft`), from preferences between answers (`dpo`, `orpo`), or
from answers labelled good or bad (`kto`).

Names and defaults of the settings are those of TRL 1.16 (`DPOConfig`, `KTOConfig`, `ORPOConfig`).
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from app.core.specs.spec import Spec

Method = Literal["sft", "dpo", "kto", "orpo"]
PREFERENCE_METHODS = ("dpo", "kto", "orpo")

# The peak learning rate where a job names none. TRL's default for preferences, 1e-6, is for training all
# weights; an adapter needs about ten times as much.
LEARNING_RATES: dict[str, float] = {"sft": 2e-4, "dpo": 2e-5, "kto": 2e-5, "orpo": 2e-5}

DpoLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
_SMOOTHED = ("sigmoid", "exo_pair", "robust", "aot", "aot_unpaired")

Beta = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]


class DpoSpec(Spec):
    """Direct preference optimization (Rafailov et al. 2023), and losses of its kind."""

    beta: Beta = Field(
        0.1, description="How strongly the adapter is held near the reference model; of `ipo`, its τ."
    )
    loss_type: DpoLoss | Annotated[list[DpoLoss], Field(min_length=1, max_length=len(get_args(DpoLoss)))] = (
        Field("sigmoid", description="The loss, or several whose weighted sum is the loss.")
    )
    loss_weights: Annotated[list[Weight], Field(min_length=1)] | None = Field(
        None, description="A weight for each of several losses; null: 1 each."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Probability that a preference is the wrong way round. For `sigmoid` (conservative DPO), "
        "`robust`, `exo_pair` (above 0), `aot` and `aot_unpaired`.",
    )
    discopop_tau: float = Field(0.05, ge=1e-4, le=100, description="Temperature of `discopop`.")

    @property
    def losses(self) -> list[tuple[DpoLoss, float]]:
        """(loss, weight) of each loss."""
        names = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        return list(zip(names, self.loss_weights or [1.0] * len(names), strict=True))

    @model_validator(mode="after")
    def _losses_agree(self) -> Self:
        names = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        if len(set(names)) < len(names):
            raise ValueError(
                "dpo.loss_type names a loss twice: name it once, with its weight in loss_weights"
            )
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(
                f"dpo.loss_weights has {len(self.loss_weights)} weights for {len(names)} losses in loss_type"
            )
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError(
                "dpo.loss_type exo_pair needs a dpo.label_smoothing above 0; its authors recommend 0.001"
            )
        if self.label_smoothing and not set(names) & set(_SMOOTHED):
            raise ValueError(
                f"dpo.label_smoothing has no effect on loss_type {', '.join(names)}: leave it out, or choose "
                f"one of {', '.join(_SMOOTHED)}"
            )
        return self


class KtoSpec(Spec):
    """Kahneman-Tversky optimization, from answers labelled good or bad (Ethayarajh et al. 2024)."""

    beta: Beta = Field(0.1, description="How strongly the adapter is held near the reference model.")
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="`apo_zero_unpaired` compares with the reference model alone, not with the batch."
    )
    desirable_weight: Weight = Field(1.0, description="Weight of the losses of good answers.")
    undesirable_weight: Weight = Field(1.0, description="Weight of the losses of bad answers.")

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not (self.desirable_weight or self.undesirable_weight):
            raise ValueError("kto.desirable_weight and kto.undesirable_weight are both 0: nothing is learned")
        return self


class OrpoSpec(Spec):
    """Odds ratio preference optimization (Hong et al. 2024), which needs no reference model."""

    beta: Beta = Field(
        0.1, description="Weight of the odds ratio against the loss of the chosen answer; λ in the paper."
    )


PreferenceSpec = DpoSpec | KtoSpec | OrpoSpec
