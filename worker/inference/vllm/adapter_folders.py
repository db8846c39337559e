"""Folders of adapters at paths that vLLM reads too: those of a local store, or copies in a shared folder.

vLLM reads an adapter's files again after it has dropped its weights, so a folder stays until it is unloaded.
"""

import shutil
import threading
from pathlib import Path

import torch

from app.core.engine.messages import AdapterRef
from app.core.errors import NotFound
from app.core.errors.engine import AdaptersNotShared
from app.core.storage.artifacts import ArtifactStore
from worker.atomic_folders import appearing
from worker.inference.general.adapters import PeftFolder

_APPLIED = "vLLM applies it"


class AdapterFolders:
    """Adapters by id. Safe to call from many threads."""

    def __init__(self, store: ArtifactStore, shared_folder: Path | None) -> None:
        self._store = store
        self._shared = shared_folder
        self._copying = threading.Lock()

    @property
    def root(self) -> Path | None:
        """The folder that all adapters are in; None where there is none that vLLM could read."""
        return self._shared or self._store.local_folder

    def get(self, reference: AdapterRef, _dtype: torch.dtype = torch.float32) -> PeftFolder:
        """Returns the adapter's folder. Raises NotFound and AdaptersNotShared."""
        try:
            return PeftFolder(reference.id, self._find(reference), _APPLIED)
        except FileNotFoundError as error:
            raise NotFound(f"The files of adapter {reference.id!r} are gone: {error}.") from error

    def holds(self, _adapter_id: str) -> bool:
        """Always: their weights are not read here."""
        return True

    def remove(self, adapter_id: str) -> None:
        """Remove the copy of an adapter that is unloaded."""
        if self._shared is not None:
            shutil.rmtree(self._shared / adapter_id, ignore_errors=True)

    def _find(self, reference: AdapterRef) -> Path:
        if self._shared is not None:
            return self._copy(self._shared / reference.id, reference)
        local = self._store.local_folder
        if local is None:
            raise AdaptersNotShared(
                "vLLM can't read adapters from an object store.",
                hint="Set TUNESMITH_VLLM_ADAPTERS_DIR to a folder that the worker and vLLM share.",
            )
        folder = (local / reference.artifact).absolute()
        if not folder.is_dir():
            raise FileNotFoundError(reference.artifact)
        return folder

    def _copy(self, target: Path, reference: AdapterRef) -> Path:
        with self._copying:
            if not target.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                with appearing(target) as staging:
                    self._store.download(reference.artifact, staging)
        return target
