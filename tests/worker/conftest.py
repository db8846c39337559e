"""The tiny model and its tokenizer, for all tests of the worker."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.tiny_model import NAME, make_tiny_model


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models")).parent


@pytest.fixture(scope="session")
def tokenizer(models_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(models_folder / NAME)
