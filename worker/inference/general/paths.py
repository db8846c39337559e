"""Decides which path serves a request: the paged engine wherever it can compute base model and adapter."""

import threading
from pathlib import Path

from app.core.engine.messages import BaseModelRef, ServingPath
from worker.inference.adapters.cache import StoredAdapter
from worker.inference.general.adapters import PeftFolder
from worker.models import serving_path


class ServingPaths:
    """Why base models need the general path, from their settings or since loading found it. Thread-safe."""

    def __init__(self) -> None:
        self._obstacles: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def choose(self, reference: BaseModelRef, folder: Path, adapter: StoredAdapter | None) -> BaseModelRef:
        """Returns the reference with the path that serves it. Raises ModelUnreadable."""
        needs_general = isinstance(adapter, PeftFolder) or self._find(reference.name, folder) is not None
        path = ServingPath.GENERAL if needs_general else ServingPath.PAGED
        return reference.model_copy(update={"path": path})

    def learn(self, reference: BaseModelRef, obstacle: str) -> None:
        """Record that the paged engine can't compute a base model."""
        with self._lock:
            self._obstacles[reference.name] = obstacle

    def reason(self, reference: BaseModelRef) -> str | None:
        """What in a base model the paged engine can't compute, where that is known."""
        with self._lock:
            return self._obstacles.get(reference.name)

    def _find(self, name: str, folder: Path) -> str | None:
        with self._lock:
            if name in self._obstacles:
                return self._obstacles[name]
        obstacle = serving_path.find_folder_obstacle(folder)
        with self._lock:
            return self._obstacles.setdefault(name, obstacle)
