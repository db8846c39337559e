"""The Hub's cache of this machine: what is listed, since when it is unused, what is deleted."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import constants

from worker.models.files import hub_cache

OLD = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def add(cache: Path, name: str, **files: bytes) -> Path:
    """A repository as the Hub's client lays it out; returns the folder of its revision."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("5" * 40)
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("5" * 40)
    for number, (file, content) in enumerate(files.items()):
        blob = repository / "blobs" / str(number)
        blob.write_bytes(content)
        os.utime(blob, (OLD, OLD))
        (snapshot / file.replace("_json", ".json").replace("_safetensors", ".safetensors")).symlink_to(blob)
    os.utime(repository / "refs" / "main", (OLD, OLD))
    return snapshot


def config(**more: object) -> bytes:
    return json.dumps(
        {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, **more}
    ).encode()


def test_a_model_is_listed_with_size_limits_and_last_use(cache: Path) -> None:
    add(cache, "owner/a--b", config_json=config(), model_safetensors=bytes(1000))
    add(cache, "owner/bert", config_json=config(architectures=["BertModel"]), model_safetensors=b"1")
    (cache / "datasets--owner--rows").mkdir()
    (model,) = hub_cache.list_downloaded()
    assert (model.name, model.is_whole) == ("owner/a--b", True)
    assert model.size_bytes == 1000 + len(config()) + 40
    assert (model.description.architecture, model.description.context_length) == ("LlamaForCausalLM", 2048)
    assert model.used_at.timestamp() == OLD
    # To list it is no use of it.
    assert hub_cache.list_downloaded()[0].used_at == model.used_at


def test_a_model_without_its_last_shard_is_not_whole(cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    files = {"config_json": config(), "model.safetensors.index_json": index, "one_safetensors": b"1"}
    snapshot = add(cache, "owner/model", **files)
    assert not hub_cache.list_downloaded()[0].is_whole
    (snapshot / "two.safetensors").symlink_to(snapshot / "one.safetensors")
    assert hub_cache.list_downloaded()[0].is_whole


def test_a_use_is_marked_where_the_disk_does_not_mark_it(cache: Path, tmp_path: Path) -> None:
    snapshot = add(cache, "owner/model", config_json=config(), model_safetensors=b"1")
    hub_cache.mark_used(snapshot)
    assert hub_cache.list_downloaded()[0].used_at.timestamp() > OLD
    assert (snapshot / "model.safetensors").stat().st_mtime == OLD


def test_a_deleted_model_leaves_nothing_and_others_stay(cache: Path) -> None:
    for name in ("owner/model", "owner/other"):
        add(cache, name, config_json=config(), model_safetensors=bytes(500))
    (cache / ".locks" / "models--owner--model").mkdir(parents=True)
    assert hub_cache.remove("../model") == 0
    assert hub_cache.remove("owner/model") == 500 + len(config()) + 40
    assert hub_cache.remove("owner/model") == 0
    assert sorted(path.name for path in cache.rglob("*model*") if "other" not in str(path)) == []
    assert [model.name for model in hub_cache.list_downloaded()] == ["owner/other"]
