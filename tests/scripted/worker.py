"""A real worker process whose children follow scripts.

`python -m tests.scripted.worker [--serve] [--broken]`; with --broken, its examination finds no GPU.
"""

import logging
import sys
from functools import partial

from app.core.settings import Settings
from worker.doctor.process import Examination
from worker.supervisor import Role, Supervisor


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    roles = frozenset(Role) if "--serve" in sys.argv else frozenset({Role.TRAIN})
    broken = partial(Examination, module="tests.scripted.doctor") if "--broken" in sys.argv else None
    Supervisor(
        Settings(),
        roles,
        training_module="tests.scripted.training",
        engine_module="tests.scripted.engine",
        make_examination=broken,
    ).run()


if __name__ == "__main__":
    main()
