"""A worker that exports, held: the real one, which may be stopped when it has stored a file of an export."""

import logging
from pathlib import Path

from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from tests.scripted.held import hold
from worker import supervisor
from worker.supervisor import Role, Supervisor


class HeldStore(ArtifactStore):
    """Stops after a file."""

    def put_file(self, key: str, source: Path) -> None:
        super().put_file(key, source)
        hold("storing")


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    supervisor.ArtifactStore = HeldStore  # type: ignore[misc]
    supervisor._probe_device = lambda: {}  # it imports torch, and who exports does not ask
    Supervisor(
        Settings(), frozenset({Role.TRAIN}), exporting_module="tests.end_to_end.processes.held_export"
    ).run()


if __name__ == "__main__":
    main()
