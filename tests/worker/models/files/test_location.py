"""A Hub model is on this machine when all of its weights are."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from app.core.errors.base_models import ModelUnreadable
from worker.models.files.location import find_downloaded

MODEL = "owner/tiny"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a revision in the Hub's cache, as a download of its description leaves it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--owner--tiny", "5" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def write_index(folder: Path) -> None:
    shards = {f"layers.{number}.weight": shard for number, shard in enumerate(SHARDS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_a_model_is_here_when_its_last_shard_is(snapshot: Path) -> None:
    assert find_downloaded(MODEL) is None
    write_index(snapshot)
    for shard in SHARDS:
        assert find_downloaded(MODEL) is None
        (snapshot / shard).touch()

    assert find_downloaded(MODEL) == snapshot


def test_a_model_of_one_file_needs_no_index(snapshot: Path) -> None:
    (snapshot / "model.safetensors").touch()

    assert find_downloaded(MODEL) == snapshot


def test_an_index_that_can_not_be_read_is_named(snapshot: Path) -> None:
    (snapshot / "model.safetensors.index.json").write_text("{}")

    with pytest.raises(ModelUnreadable):
        find_downloaded(MODEL)
