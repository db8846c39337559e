"""A real worker process whose children follow scripts.

`python -m tests.scripted.worker [--serve | --only-serve] [--broken] [--gpus=N]`. With --broken, it examines
no GPU. With --gpus it takes its host to have so many GPUs, whose ids are GPU-0, GPU-1, and so on.
"""

import logging
import sys
from functools import partial

from app.core.engine.devices import WorkerDevice
from app.core.settings import Settings
from worker.doctor.process import Examination
from worker.supervisor import Role, Supervisor


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    roles = frozenset(Role) if "--serve" in sys.argv else frozenset({Role.TRAIN})
    if "--only-serve" in sys.argv:
        roles = frozenset({Role.SERVE})
    broken = partial(Examination, module="tests.scripted.doctor") if "--broken" in sys.argv else None
    gpus = next((int(word.partition("=")[2]) for word in sys.argv if word.startswith("--gpus=")), 0)
    Supervisor(
        Settings(),
        roles,
        training_module="tests.scripted.training",
        launcher_module="tests.scripted.training",
        engine_module="tests.scripted.engine",
        exporting_module="tests.scripted.export",
        make_examination=broken,
        probe=partial(simulate, gpus) if gpus else None,
    ).run()


def simulate(count: int) -> list[WorkerDevice]:
    return [
        WorkerDevice(kind="cuda", name="Simulated", index=place, uuid=f"GPU-{place}", memory_bytes=80 << 30)
        for place in range(count)
    ]


if __name__ == "__main__":
    main()
