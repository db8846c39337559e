import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.engine import workers
from app.core.engine.state import EngineState
from app.core.engine.workers import WorkerReport
from app.core.settings import Settings
from app.core.storage.database import Database
from worker import health

HERE = f"{socket.gethostname()}-1-abcdef"


def register(database: Database, worker_id: str = HERE, *, ago: float = 0, **fields: Any) -> None:
    report = WorkerReport(
        worker_id, ["serve", "train"], **{"engine_url": "http://e", "engine_state": EngineState(), **fields}
    )
    with database.transaction() as session:
        workers.heartbeat(session, report, now=datetime.now(UTC) - timedelta(seconds=ago))


def test_a_worker_that_beats_and_whose_engine_answers_is_healthy(
    settings: Settings, database: Database
) -> None:
    register(database)
    assert health.find_problem(settings) is None


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"ago": 1000}, "No worker of this host"),
        ({"worker_id": "elsewhere-1-abcdef"}, "No worker of this host"),
        ({"engine_url": None}, "The engine is not up."),
        ({"engine_state": None}, "The engine does not answer."),
        ({"problems": ["GPU: none."]}, "GPU: none."),
    ],
)
def test_what_is_wrong_is_said(
    settings: Settings, database: Database, fields: dict[str, Any], complaint: str
) -> None:
    register(database, **fields)
    assert (health.find_problem(settings) or "").startswith(complaint)


def test_a_database_without_tables_is_a_complaint(settings: Settings) -> None:
    settings.database_url = f"sqlite:///{settings.data_dir}/empty.db"
    assert (health.find_problem(settings) or "").startswith("The database does not answer")


def test_the_command_exits_with_1_where_the_worker_is_not_healthy(
    settings: Settings, database: Database
) -> None:
    command = [sys.executable, "-m", "worker", "--check-health"]
    environment = os.environ | {"TUNESMITH_DATA_DIR": str(settings.data_dir)}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    register(database)
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
