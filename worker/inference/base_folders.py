"""Where the base models are that an engine serves.

To look for a Hub model asks the Hub, which takes a good part of a second, or many where it can't be reached.
So it is asked when a base model is loaded, and what was found then holds for the requests to it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.models.files import hub_cache, location
from worker.models.files.description import CONFIG

# A model in use is marked as used so often; what deletes unused ones counts in days.
_MARK_SECONDS = 600.0


@dataclass
class _Found:
    folder: Path
    marked_at: float


class BaseFolders:
    """The folders of base models by name. Thread-safe."""

    def __init__(self, models_folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._models_folder = models_folder
        self._clock = clock
        self._of_hub: dict[str, _Found] = {}

    def find(self, name: str) -> Path:
        """Returns the folder that was found last, while it is there. Raises as `find_newest`."""
        found = self._of_hub.get(name)
        if found is None or not (found.folder / CONFIG).exists():
            return self.find_newest(name)
        if self._clock() - found.marked_at > _MARK_SECONDS:
            found.marked_at = self._clock()
            hub_cache.mark_used(found.folder)
        return found.folder

    def find_newest(self, name: str) -> Path:
        """Returns the folder in the models folder, or that of the Hub's newest revision, which is downloaded.

        Raises ModelMissing, ModelGated, HubUnreachable.
        """
        folder = location.locate(name, self._models_folder)
        if "/" in name:
            self._of_hub[name] = _Found(folder, self._clock())
        return folder
