"""`python -m worker`: the process that owns the GPU. `--role` picks what it does.

`--check` says what the worker sees of its machine and ends; `--check-health` says whether the worker here is
at work. Both exit with 1 where something is wrong.
"""

import argparse
import os
import sys

from app.core.errors.storage import DatabaseTooNew
from app.core.settings import Settings
from worker import health
from worker.doctor.process import Examination
from worker.host_devices import has_ray
from worker.processes.logs import set_up_logging
from worker.supervisor import Role, Supervisor, wait_for_schema

_SCHEMA_SECONDS = 60


def main() -> int:
    """Run a worker until it is told to stop, or check one; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--role", choices=[*Role, "all"], default="all", help="what this worker does")
    look = parser.add_mutually_exclusive_group()
    look.add_argument("--check", action="store_true", help="examine GPU, packages, folders, database")
    look.add_argument("--check-health", action="store_true", help="is the worker of this host at work?")
    options = parser.parse_args()
    if options.check:
        # Another process, because this one never loads torch.
        os.execv(sys.executable, [sys.executable, "-m", "worker.doctor"])
    settings = Settings()
    if options.role == Role.CLUSTER and not (settings.ray_address and has_ray()):
        parser.error("--role cluster needs TUNESMITH_RAY_ADDRESS, and Ray: pip install 'tunesmith[ray]'")
    if options.check_health:
        complaint = health.find_problem(settings)
        print(complaint or "The worker is at work.")
        return 1 if complaint else 0
    return _run(settings, options.role)


def _run(settings: Settings, role: str) -> int:
    set_up_logging()
    try:
        if not wait_for_schema(settings, timeout_seconds=_SCHEMA_SECONDS):
            print("The database is not at this version. Start the API first: it migrates.", file=sys.stderr)
            return 1
    except DatabaseTooNew as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 1
    cache_compiled_kernels(settings)
    roles = frozenset({Role.TRAIN, Role.SERVE}) if role == "all" else frozenset({Role(role)})
    Supervisor(settings, roles, make_examination=Examination).run()
    return 0


def cache_compiled_kernels(settings: Settings) -> None:
    """Make child processes store Triton's compiled kernels in the data folder, unless a folder is set.

    A kernel is then compiled once for all jobs, also where the home folder does not last or can't be written.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(settings.data_dir / "cache" / "triton"))


if __name__ == "__main__":
    sys.exit(main())
