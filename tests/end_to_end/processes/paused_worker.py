"""A worker with a pause point: the real one, which may pause when it has stored a file of an export."""

import logging
from pathlib import Path

from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from tests.scripted.pause_points import pause
from worker import supervisor
from worker.supervisor import Role, Supervisor


class PausingStore(ArtifactStore):
    """May pause after each stored file."""

    def put_file(self, key: str, source: Path) -> None:
        super().put_file(key, source)
        pause("storing")


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    supervisor.ArtifactStore = PausingStore  # type: ignore[misc]
    supervisor._probe_device = lambda: {}  # it imports torch, which exports do not need
    Supervisor(
        Settings(), frozenset({Role.TRAIN}), exporting_module="tests.end_to_end.processes.paused_export"
    ).run()


if __name__ == "__main__":
    main()
