"""Methods of training in a job spec: their settings, and what is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.core.specs.job import JobSpec
from app.core.specs.methods import DpoSpec, KtoSpec, OrpoSpec
from tests.factories import make_spec


def test_a_job_imitates_answers_unless_it_says_otherwise() -> None:
    spec = make_spec()
    assert (spec.method, spec.preferences, spec.training.learning_rate) == ("sft", None, 2e-4)


@pytest.mark.parametrize(
    ("method", "settings"), [("dpo", DpoSpec()), ("kto", KtoSpec()), ("orpo", OrpoSpec())]
)
def test_a_preference_method_shows_its_settings_and_learns_more_slowly(method: str, settings: object) -> None:
    spec = make_spec(method=method)
    assert spec.preferences == settings
    assert spec.training.learning_rate == 2e-5
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_named_learning_rate_is_kept() -> None:
    assert make_spec(method="dpo", training={"learning_rate": 2e-4}).training.learning_rate == 2e-4
    assert make_spec(method="dpo", training={"seed": 1}).training.learning_rate == 2e-5


def test_losses_have_weights() -> None:
    assert DpoSpec().losses == [("sigmoid", 1.0)]
    assert DpoSpec(loss_type=["sigmoid", "sft"], loss_weights=[0.8, 1]).losses == [
        ("sigmoid", 0.8),
        ("sft", 1),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "ppo"}, "'sft', 'dpo', 'kto' or 'orpo'"),
        ({"method": "dpo", "kto": {}}, "kto is given, but method is dpo"),
        ({"dpo": {"beta": 0.2}}, "set method to dpo"),
        ({"method": "dpo", "dpo": {"beta": 0}}, "greater than 0"),
        ({"method": "dpo", "dpo": {"desirable_weight": 1}}, "desirable_weight"),
        ({"method": "dpo", "dpo": {"loss_type": "kto"}}, "loss_type"),
        ({"method": "dpo", "dpo": {"loss_type": []}}, "loss_type"),
        ({"method": "dpo", "dpo": {"loss_type": ["sft", "sft"]}}, "names a loss twice"),
        ({"method": "dpo", "dpo": {"loss_weights": [1, 2]}}, "2 weights for 1 losses"),
        ({"method": "dpo", "dpo": {"loss_type": "exo_pair"}}, "needs a dpo.label_smoothing above 0"),
        (
            {"method": "dpo", "dpo": {"loss_type": "ipo", "label_smoothing": 0.1}},
            "has no effect on loss_type ipo",
        ),
        ({"method": "dpo", "dpo": {"label_smoothing": 0.5}}, "less than 0.5"),
        ({"method": "kto", "kto": {"desirable_weight": -1}}, "greater than or equal to 0"),
        ({"method": "kto", "kto": {"desirable_weight": 0, "undesirable_weight": 0}}, "nothing is learned"),
        ({"method": "orpo", "orpo": {"loss_type": "sigmoid"}}, "loss_type"),
        (
            {"method": "dpo", "training": {"packing": True}},
            "training.packing is for the method sft, not for dpo",
        ),
        ({"method": "kto", "training": {"neftune_noise_alpha": 5}}, "training.neftune_noise_alpha is for"),
    ],
)
def test_what_does_not_fit_a_method_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_spec(**fields)
