"""Fails the checks at once where no container engine is available; they are never skipped."""

import pytest

from . import engine


def pytest_sessionstart() -> None:
    complaint = engine.find_missing_prerequisite()
    if complaint:
        pytest.exit(f"make compose-check can't run. {complaint}", returncode=1)
