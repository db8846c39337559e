"""A real worker process whose children follow scripts: `python -m tests.scripted_worker [--serve]`."""

import logging
import sys

from app.core.settings import Settings
from worker.supervisor import Role, Supervisor


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    roles = frozenset(Role) if "--serve" in sys.argv else frozenset({Role.TRAIN})
    Supervisor(
        Settings(), roles, training_module="tests.scripted_training", engine_module="tests.scripted_engine"
    ).run()


if __name__ == "__main__":
    main()
