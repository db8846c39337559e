import math

from app.core.jobs import events, losses
from app.core.jobs.events import Evaluation, Log, Metrics
from app.core.storage.database import Database
from tests.factories import make_job


def logged(step: int, loss: float) -> Metrics:
    return Metrics(step=step, total_steps=100, epoch=step / 100, loss=loss)


def test_losses_of_several_jobs_are_thinned_and_end_with_the_last(database: Database) -> None:
    with database.transaction() as session:
        long, short, without = (make_job(session).id for _ in range(3))
        events.append(session, long, [Log(message="x"), *(logged(step, step / 10) for step in range(1, 101))])
        events.append(
            session, short, [logged(1, 3), Evaluation(step=1, epoch=1, loss=9), logged(2, math.nan)]
        )
        found = losses.read_thinned(session, [long, short, without, "job_that_is_gone"], points=10)
    assert set(found) == {long, short}
    assert found[short] == [3]
    assert (found[long][0], found[long][-1]) == (0.1, 10)
    assert len(found[long]) in range(9, 12)
    assert found[long] == sorted(found[long])


def test_the_last_loss_of_a_repeated_step_counts(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        events.append(session, job_id, [logged(1, 5), logged(2, 4), logged(3, 3), logged(2, 2), logged(3, 1)])
        assert losses.read_thinned(session, [job_id], points=100) == {job_id: [5, 2, 1]}
