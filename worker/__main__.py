"""`python -m worker`: the process that owns the GPU. `--role` picks what it does."""

import argparse
import logging
import sys

from app.core.settings import Settings
from worker.supervisor import Role, Supervisor, wait_for_schema

_SCHEMA_SECONDS = 60


def main() -> int:
    """Run a worker until it is told to stop; answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--role", choices=[*Role, "all"], default="all", help="what this worker does")
    role = parser.parse_args().role
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings()
    if not wait_for_schema(settings, timeout_seconds=_SCHEMA_SECONDS):
        print("The database is not at this version. Start the API first: it migrates.", file=sys.stderr)
        return 1
    roles = frozenset(Role) if role == "all" else frozenset({Role(role)})
    Supervisor(settings, roles).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
