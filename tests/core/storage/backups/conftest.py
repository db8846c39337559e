"""Stores and boxes to back up and to restore into."""

from pathlib import Path

import pytest

from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_url)


@pytest.fixture
def empty(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "restored")
