"""Tests here need a CUDA device. Elsewhere they are skipped, and the report says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.models.llama import modeling_llama

from tests.worker.inference.conftest import adapters_folder, models_folder
from tests.worker.training.conftest import make_request

__all__ = ["adapters_folder", "make_request", "models_folder"]


@pytest.fixture(autouse=True)
def own_rotation() -> Iterator[None]:
    """Restore transformers' rotation: the engine replaces it in its process by a kernel without gradients."""
    own = modeling_llama.apply_rotary_pos_emb
    yield
    modeling_llama.apply_rotary_pos_emb = own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device: run it on one, as docs say"))
