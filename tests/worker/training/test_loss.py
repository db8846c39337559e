"""The loss is computed at the learned tokens alone, and is the one TRL computes at every position."""

from typing import Any

import pytest
from trl.trainer import utils as trl_utils

from app.core.jobs.events import Metrics
from app.core.settings import TrainingPath
from tests.worker.training.conftest import MakeRequest, run_here
from worker.processes.reports import TrainingRequest
from worker.training.loss import score_learned_tokens_only

TRAINING = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2, "assistant_only_loss": True}


def test_scoring_learned_tokens_only_changes_no_loss(
    make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    class Counting:
        """TRL's function, counting the positions it is given."""

        @staticmethod
        def apply(hidden: Any, *rest: Any) -> Any:
            scored.append(len(hidden))
            return original.apply(hidden, *rest)

    original = trl_utils._ChunkedLogProbFunction
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Counting)
    monkeypatch.setattr(trl_utils, "_use_triton", lambda device: False)
    everywhere = losses(run_here(plainly(make_request("everywhere", training=TRAINING))))
    positions, scored[:] = sum(scored), []
    score_learned_tokens_only()
    learned = losses(run_here(plainly(make_request("learned", training=TRAINING))))
    assert learned == pytest.approx(everywhere, rel=1e-5)
    assert sum(scored) < positions / 2


def plainly(request: TrainingRequest) -> TrainingRequest:
    return request.model_copy(update={"path": TrainingPath.PLAIN})


def losses(reports: Any) -> list[float]:
    return [event.loss for event in reports.events(Metrics)]
