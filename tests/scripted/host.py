"""A real worker, with the real trainer, on a host of its own name: `python -m tests.scripted.host NAME`."""

import logging
import sys

from app.core.engine import workers
from app.core.settings import Settings
from worker.supervisor import Role, Supervisor


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    workers.name_host = lambda name=None: sys.argv[1]  # type: ignore[assignment]
    Supervisor(Settings(), frozenset({Role.TRAIN})).run()


if __name__ == "__main__":
    main()
