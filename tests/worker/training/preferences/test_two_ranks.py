"""Preferences learned by two processes on the CPU, compared with one process and twice the passes."""

from typing import Any

import pytest
import torch

from app.core.jobs.events import Evaluation, Metrics
from tests.worker.training.conftest import StartRanks, run_here
from tests.worker.training.preferences.conftest import MakePreferenceRequest, comparisons, labelled
from tests.worker.training.ranks.outcomes import losses, tokens, weights
from worker.processes.reports import Outcome

TRAINING: dict[str, Any] = {
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "validation_split": 0.3,
    "eval_steps": 2,
    "optim": "sgd",
    "lr_scheduler_type": "linear",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_two_ranks_learn_preferences_as_one_process(
    make_preference_request: MakePreferenceRequest, start_ranks: StartRanks, method: str
) -> None:
    # Three batches to train on, in steps of two: the last step has one of them.
    rows = comparisons(8) if method == "dpo" else labelled(8)
    common: dict[str, Any] = {"rows": rows, "method": method}
    one = make_preference_request("one", **common, training={**TRAINING, "gradient_accumulation_steps": 2})
    two = make_preference_request("two", **common, training=TRAINING, resources={"gpus": 2})

    alone = run_here(one)
    child = start_ranks(two)
    together = child.read_to_end()

    assert together, child.process.log_tail()
    assert together.ended.outcome is Outcome.FINISHED, together.ended
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert tokens(together) == tokens(alone)
    for kind in (Metrics, Evaluation):
        # Labelled answers may be all good or all bad, and then have no margin.
        found, expected = (
            [
                (event.loss, event.reward_chosen or 0.0, event.reward_accuracy)
                for event in reports.events(kind)
            ]
            for reports in (together, alone)
        )
        assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    wanted = weights(one)
    for name, weight in weights(two).items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)
