"""Pushes to a fake Hub over HTTP with the real huggingface_hub client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.errors.base_models import HubUnreachable
from app.core.errors.exports import HubRefused, HubRepositoryExists
from tests.servers.writable_hub import NARROW, READER, WRITER, WritableHub
from worker.exports import hub
from worker.exports.hub import HubPush

NAME = "me/helper"
real = hub.HfApi
# huggingface_hub 2.4 hands files to httpx by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    made = WritableHub()
    # huggingface_hub reads its endpoint once, at import; each client may be given another.
    monkeypatch.setattr(hub, "HfApi", lambda: real(endpoint=made.url, token=hub.get_token()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield made
    made.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "README.md").write_text("# helper\n")
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights" * 1000)
    return made


def push_to(name: str = NAME, *, private: bool = True, update: bool = False) -> HubPush:
    return HubPush(name, private=private, update=update)


def test_a_folder_becomes_a_private_repository_in_one_commit(the_hub: WritableHub, folder: Path) -> None:
    push = push_to()
    push.check()

    assert push.run(folder, "made") == f"{the_hub.url}/{NAME}"
    assert the_hub.private[NAME]
    assert the_hub.repositories[NAME]["model.safetensors"] == b"weights" * 1000
    assert the_hub.commits == [["README.md", "config.json", "model.safetensors"]]


def test_a_push_that_succeeded_is_not_undone(the_hub: WritableHub, folder: Path) -> None:
    push = push_to()
    push.run(folder, "made")

    push.undo()

    assert "config.json" in the_hub.repositories[NAME]


def test_a_repository_that_exists_is_pushed_to_only_on_request(the_hub: WritableHub, folder: Path) -> None:
    the_hub.repositories[NAME], the_hub.private[NAME] = {"README.md": b"someone's"}, True
    with pytest.raises(HubRepositoryExists, match=NAME):
        push_to().check()
    with pytest.raises(HubRepositoryExists, match=NAME):
        push_to().run(folder, "made")
    assert the_hub.repositories[NAME] == {"README.md": b"someone's"}

    push_to(update=True).run(folder, "made")

    assert "config.json" in the_hub.repositories[NAME]


def test_what_a_killed_attempt_left_empty_is_filled(the_hub: WritableHub, folder: Path) -> None:
    the_hub.repositories[NAME], the_hub.private[NAME] = {".gitattributes": b""}, True

    push_to().check()
    push_to().run(folder, "made")

    assert "config.json" in the_hub.repositories[NAME]


def test_a_private_push_does_not_go_into_an_empty_public_repository(
    the_hub: WritableHub, folder: Path
) -> None:
    the_hub.repositories[NAME], the_hub.private[NAME] = {".gitattributes": b""}, False

    with pytest.raises(HubRepositoryExists):
        push_to().run(folder, "made")
    assert NAME in the_hub.repositories


def test_a_private_push_does_not_go_into_a_public_repository_by_an_update(
    the_hub: WritableHub, folder: Path
) -> None:
    the_hub.repositories[NAME], the_hub.private[NAME] = {"README.md": b"mine"}, False

    with pytest.raises(HubRefused, match="is public"):
        push_to(update=True).check()
    with pytest.raises(HubRefused, match="is public"):
        push_to(update=True).run(folder, "made")
    assert the_hub.repositories[NAME] == {"README.md": b"mine"}

    push_to(update=True, private=False).run(folder, "made")
    assert "config.json" in the_hub.repositories[NAME]


def test_a_token_that_may_only_read_is_refused_before_the_work(
    the_hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)

    with pytest.raises(HubRefused, match=f"may not write to {NAME}"):
        push_to().check()


def test_a_token_without_rights_to_the_owner_is_refused(
    the_hub: WritableHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", NARROW)
    push = push_to()
    push.check()

    with pytest.raises(HubRefused, match=f"may not write to {NAME}") as refused:
        push.run(folder, "made")
    assert NARROW not in refused.value.message


def test_without_a_token_nothing_begins(the_hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)

    with pytest.raises(HubRefused, match="no token"):
        push_to().check()


def test_a_push_that_fails_leaves_no_empty_repository(the_hub: WritableHub, folder: Path) -> None:
    the_hub.refuses_commits = True

    with pytest.raises(HubRefused, match="disk of the Hub is full"):
        push_to().run(folder, "made")
    assert the_hub.repositories == {}


def test_a_large_file_that_is_refused_says_why(the_hub: WritableHub, folder: Path) -> None:
    the_hub.upload_status = 413

    with pytest.raises(HubRefused, match="413"):
        push_to().run(folder, "made")
    assert the_hub.repositories == {}


def test_a_hub_that_is_away_is_named(the_hub: WritableHub, folder: Path) -> None:
    the_hub.stop()

    with pytest.raises(HubUnreachable):
        push_to().run(folder, "made")
