"""Decides which path serves a request: the paged engine wherever it can compute base model and adapter."""

import threading
from dataclasses import dataclass
from pathlib import Path

from app.core.engine.messages import BaseModelRef, ServingPath
from worker.inference.adapters.cache import CachedAdapter, StoredAdapter
from worker.inference.general.adapters import PeftFolder
from worker.models import serving_path


@dataclass(frozen=True)
class PathChoice:
    """A base model with the path that serves it, and what the paged engine can't compute, if anything."""

    base_model: BaseModelRef
    model_obstacle: str | None
    adapter_obstacle: str | None


class ServingPaths:
    """Why base models need the general path, from their settings or since loading found it. Thread-safe."""

    def __init__(self) -> None:
        self._obstacles: dict[str, str | None] = {}
        # By base model and adapter.
        self._parameter_obstacles: dict[tuple[str, str], str | None] = {}
        self._lock = threading.Lock()

    def choose(self, reference: BaseModelRef, folder: Path, adapter: StoredAdapter | None) -> PathChoice:
        """The path that serves a request. Raises ModelUnreadable.

        A reference that names the general path takes it: so the answers of an adapter can be compared with
        those of its base model.
        """
        of_model = self._find(reference.name, folder)
        of_adapter = adapter.obstacle if isinstance(adapter, PeftFolder) else None
        if isinstance(adapter, CachedAdapter) and adapter.parameters and not of_model:
            of_adapter = self._find_of_parameters(reference.name, folder, adapter)
        is_general = bool(of_model or of_adapter) or reference.path is ServingPath.GENERAL
        path = ServingPath.GENERAL if is_general else ServingPath.PAGED
        return PathChoice(reference.model_copy(update={"path": path}), of_model, of_adapter)

    def learn(self, reference: BaseModelRef, obstacle: str) -> None:
        """Record that the paged engine can't compute a base model."""
        with self._lock:
            self._obstacles[reference.name] = obstacle

    def _find(self, name: str, folder: Path) -> str | None:
        with self._lock:
            if name in self._obstacles:
                return self._obstacles[name]
        obstacle = serving_path.find_folder_obstacle(folder)
        with self._lock:
            return self._obstacles.setdefault(name, obstacle)

    def _find_of_parameters(self, name: str, folder: Path, adapter: CachedAdapter) -> str | None:
        key = (name, adapter.id)
        with self._lock:
            if key in self._parameter_obstacles:
                return self._parameter_obstacles[key]
        obstacle = serving_path.find_parameters_obstacle(folder, adapter.parameters)
        with self._lock:
            return self._parameter_obstacles.setdefault(key, obstacle)
