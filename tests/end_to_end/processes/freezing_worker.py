"""A worker whose engine can be frozen by an adapter: see freezing_engine.py."""

import logging

from app.core.settings import Settings
from worker.supervisor import Role, Supervisor

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    Supervisor(
        Settings(),
        frozenset({Role.TRAIN, Role.SERVE}),
        engine_module="tests.end_to_end.processes.freezing_engine",
    ).run()
