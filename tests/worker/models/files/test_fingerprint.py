"""A base model is known by its weights, not by its name or its files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.core.errors.base_models import BaseModelChanged, ModelUnreadable
from worker.models.files.fingerprint import check_base, take_fingerprint


def make_weights() -> dict[str, torch.Tensor]:
    numbers = torch.arange(300 * 100, dtype=torch.float32).reshape(300, 100)
    return {"layer.weight": numbers, "layer.bias": torch.ones(100), "other.weight": numbers + 1}


def save(folder: Path, *files: dict[str, torch.Tensor]) -> Path:
    """One file, or several with an index."""
    folder.mkdir()
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors")
        return folder
    names = [f"model-{number}.safetensors" for number in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name)
    weight_map = {key: name for name, tensors in zip(names, files, strict=True) for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def record(folder: Path, content: object) -> Path:
    folder.mkdir()
    (folder / "tunesmith.json").write_text(json.dumps(content))
    return folder


def test_how_weights_are_split_into_files_makes_no_difference(tmp_path: Path) -> None:
    weights = make_weights()
    whole = save(tmp_path / "whole", weights)
    split = save(
        tmp_path / "split",
        {"other.weight": weights.pop("other.weight"), "layer.bias": weights.pop("layer.bias")},
        weights,
    )

    assert take_fingerprint(whole) == take_fingerprint(split)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights["layer.weight"].mul_(1.001),
        lambda weights: weights["layer.bias"][40].add_(1),
        lambda weights: weights.update({"other.weight": weights["other.weight"].T.contiguous()}),
        lambda weights: weights.update({"other.weight": weights["other.weight"].half()}),
        lambda weights: weights.update({"renamed.weight": weights.pop("other.weight")}),
    ],
    ids=["values", "one value of a vector", "shape", "type", "name"],
)
def test_other_weights_have_another_fingerprint(change: object, tmp_path: Path) -> None:
    assert callable(change)
    first = take_fingerprint(save(tmp_path / "first", make_weights()))
    changed = make_weights()
    change(changed)

    assert take_fingerprint(save(tmp_path / "second", changed)) != first


def test_files_that_are_exchanged_in_place_are_seen(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", make_weights())
    first = take_fingerprint(folder)

    save_file({**make_weights(), "layer.bias": torch.zeros(100)}, folder / "model.safetensors")

    assert take_fingerprint(folder) != first


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"],
    ids=["empty", "cut off", "no header"],
)
def test_broken_weights_are_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(ModelUnreadable, match="can't be used"):
        take_fingerprint(tmp_path)


def test_a_base_that_changed_is_named(tmp_path: Path) -> None:
    base = save(tmp_path / "base", make_weights())
    adapter = record(tmp_path / "adapter", {"base_weights": take_fingerprint(base)})
    check_base(adapter, base, "owner/base")

    other = save(tmp_path / "other", {**make_weights(), "layer.bias": torch.zeros(100)})
    with pytest.raises(BaseModelChanged, match="'owner/base' has other weights now"):
        check_base(adapter, other, "owner/base")


@pytest.mark.parametrize(
    "content", [{}, [], {"base_weights": 7}, {"base_weights": None}, {"base_weights": "later-2:00"}], ids=str
)
def test_an_adapter_that_says_nothing_of_its_base_passes(content: object, tmp_path: Path) -> None:
    base = save(tmp_path / "base", make_weights())

    check_base(record(tmp_path / "adapter", content), base, "base")
    check_base(tmp_path, base, "base")
