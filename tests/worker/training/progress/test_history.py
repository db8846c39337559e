"""The points of the loss curve that a checkpoint holds."""

from app.core.jobs.events import Evaluation, Metrics
from worker.training.progress.history import History


def _metrics(step: int) -> Metrics:
    return Metrics(step=step, total_steps=4000, epoch=0.0, loss=1.0)


def test_every_point_that_a_long_outage_kept_from_the_database_is_sent_again() -> None:
    history = History()
    for step in range(1, 4001):
        history.add(_metrics(step))
    saved = History.model_validate_json(history.model_dump_json())
    assert [point.step for point in saved.find_unrecorded(_metrics(1318))] == list(range(1319, 4001))


def test_an_evaluation_comes_after_the_metrics_of_its_step() -> None:
    evaluation = Evaluation(step=2, epoch=0.0, loss=1.0)
    history = History(points=[_metrics(2), evaluation])
    assert history.find_unrecorded(_metrics(2)) == [evaluation]
    assert history.find_unrecorded(evaluation) == []
