"""The Hub is asked for a base model when it is loaded, not with each request to it."""

import shutil
from pathlib import Path

import pytest

from worker.inference.base_folders import BaseFolders
from worker.models.files import hub, hub_cache

NAME = "owner/model"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub that has a new revision each time; the names that it was asked for."""
    names: list[str] = []

    def fetch(name: str, *_args: object, **_options: object) -> Path:
        names.append(name)
        folder = tmp_path / f"revision-{len(names)}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    return names


def test_the_hub_is_asked_once_for_all_requests_and_again_when_the_model_is_loaded(
    asked: list[str], tmp_path: Path
) -> None:
    folders = BaseFolders(tmp_path / "models")

    assert [folders.find(NAME).name for _ in range(3)] == ["revision-1"] * 3
    assert folders.find_newest(NAME).name == "revision-2"
    assert folders.find(NAME).name == "revision-2"
    assert asked == [NAME, NAME]


def test_a_model_that_was_deleted_is_looked_for_again(asked: list[str], tmp_path: Path) -> None:
    folders = BaseFolders(tmp_path / "models")
    shutil.rmtree(folders.find(NAME))

    assert folders.find(NAME).name == "revision-2"


def test_a_model_that_is_asked_is_marked_as_used(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [0.0]
    marked: list[str] = []
    monkeypatch.setattr(hub_cache, "mark_used", lambda folder: marked.append(folder.name))
    folders = BaseFolders(tmp_path / "models", clock=lambda: times[-1])
    folders.find(NAME)
    marked.clear()
    for seconds in (1.0, 700.0, 701.0):
        times.append(seconds)
        folders.find(NAME)

    assert marked == ["revision-1"]


def test_a_folder_of_this_machine_is_where_it_is(asked: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")

    assert BaseFolders(tmp_path / "models").find("tiny") == folder
    assert asked == []
