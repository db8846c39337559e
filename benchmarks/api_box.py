"""An API process on a fresh SQLite file for measurements, without a worker."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from app.core.datasets import records as dataset_records
from app.core.datasets.limits import Limits
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database, migrate

_START_SECONDS = 60
_MAX_JOBS = 10_000_000


class ApiBox:
    """A context manager that runs the API process, with a second connection to its database."""

    def __init__(self, folder: Path) -> None:
        self._settings = Settings(data_dir=folder / "data")
        self._log = folder / "api.log"
        migrate(self._settings.database_url)
        self.database = Database(self._settings.database_url)

    def __enter__(self) -> "ApiBox":
        environment = {
            "TUNESMITH_DATA_DIR": str(self._settings.data_dir),
            "TUNESMITH_PORT": "0",
            "TUNESMITH_MAX_QUEUED_JOBS": str(_MAX_JOBS),
        }
        with self._log.open("wb") as log:
            self._api = subprocess.Popen(
                [sys.executable, "-m", "app"], env=os.environ | environment, stdout=log, stderr=log
            )
        self._process = psutil.Process(self._api.pid)
        self.port = self._wait_for_port()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.terminate()
        self._api.wait()
        self.database.close()

    def add_dataset(self) -> str:
        """The id of a dataset that jobs may name."""
        rows = self._settings.data_dir / "rows.jsonl"
        rows.write_text('{"text": "Hello"}\n')
        store = ArtifactStore(self._settings.artifacts_url)
        row = dataset_records.store_upload(store, rows, name="rows", limits=Limits())
        with self.database.transaction() as session:
            session.add(row)
        return row.id

    def cpu_seconds(self) -> float:
        """The CPU time that the API has used so far."""
        return sum(self._process.cpu_times()[:2])

    def memory_mib(self) -> float:
        """The API's resident memory."""
        return round(self._process.memory_info().rss / (1 << 20), 1)

    def _wait_for_port(self) -> int:
        for _ in range(_START_SECONDS * 10):
            for connection in self._process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    port: int = connection.laddr.port
                    httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=_START_SECONDS)
                    return port
            time.sleep(0.1)
        sys.exit(f"The API did not start:\n{self._log.read_text()}")
