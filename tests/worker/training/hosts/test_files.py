"""Files between hosts: what has changed arrives, folders whole, growing files by their new bytes."""

from pathlib import Path

import pytest

from worker.training.hosts import files
from worker.training.hosts.files import (
    FileMessage,
    FilePart,
    FolderReceiver,
    FolderSender,
    UnitComplete,
    read_parts,
    send_folder,
)


class Link:
    """A folder, its copy, and the messages between them."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "source", folder / "target"
        self.source.mkdir()
        self.target.mkdir()
        self.receiver = FolderReceiver(self.target)
        self.sent: list[FileMessage] = []

    def send(self, message: FileMessage) -> None:
        self.sent.append(message)
        self.receiver.receive(message)

    def write(self, name: str, content: bytes) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr(files, "PART_BYTES", 4)
    return Link(tmp_path)


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_units_arrive_in_parts_and_only_once(link: Link) -> None:
    sender = FolderSender(link.source, link.send)
    link.write("checkpoints/checkpoint-2/model", b"0123456789")
    link.write("checkpoints/checkpoint-2/rank-1/state", b"")
    link.write("reference.safetensors", b"abcde")

    sender.send_changes()

    assert list_files(link.target) == list_files(link.source)
    assert len([one for one in link.sent if isinstance(one, FilePart) and one.name == "model"]) == 3
    link.sent.clear()
    sender.send_changes()
    assert link.sent == []


def test_what_was_there_at_first_is_not_sent_and_what_is_gone_goes(link: Link) -> None:
    link.write("checkpoints/checkpoint-2/model", b"2")
    for path in ("checkpoints/checkpoint-2/model", "attempt-1.log"):
        copy = link.target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"2")
    sender = FolderSender(link.source, link.send)
    (link.source / "checkpoints/checkpoint-2/model").unlink()
    (link.source / "checkpoints/checkpoint-2").rmdir()
    link.write("checkpoints/checkpoint-4/model", b"4")

    sender.send_changes()

    assert list_files(link.target) == {"attempt-1.log": b"2", "checkpoints/checkpoint-4/model": b"4"}


def test_of_a_file_that_grows_the_new_bytes_are_sent_and_a_replaced_one_is_sent_whole(link: Link) -> None:
    sender = FolderSender(link.source, link.send)
    path = link.write("tensorboard/events", b"012")
    sender.send_changes()
    with path.open("ab") as file:
        file.write(b"345")
    link.sent.clear()

    sender.send_changes()

    assert link.sent == [FilePart("tensorboard/events", "", 3, b"345")]
    link.write("new", b"9")
    (link.source / "new").replace(path)
    sender.send_changes()
    assert list_files(link.target) == {"tensorboard/events": b"9"}


def test_a_folder_appears_whole_or_not_at_all(link: Link) -> None:
    folder = link.write("checkpoints/checkpoint-2/model", b"0123456789").parent
    messages: list[FileMessage] = []
    send_folder("checkpoints/checkpoint-2", folder, messages.append)
    for message in messages[:-1]:
        link.receiver.receive(message)
    assert not (link.target / "checkpoints/checkpoint-2").exists()

    link.receiver.drop_incomplete()

    assert list_files(link.target) == {}
    # What a broken-off attempt left does not become part of the next.
    for message in (FilePart(messages[0].unit, "old", 0, b"x"), *messages):
        link.receiver = FolderReceiver(link.target) if message is messages[0] else link.receiver
        link.receiver.receive(message)
    assert list_files(link.target) == {"checkpoints/checkpoint-2/model": b"0123456789"}


def test_what_is_not_complete_is_not_sent(link: Link) -> None:
    sender = FolderSender(link.source, link.send)
    link.write("checkpoints/checkpoint-2.ab12.partial/model", b"0")
    link.write("reference.writing", b"0")
    sender.send_changes()
    assert link.sent == []


def test_a_kept_adapter_that_was_handed_over_stays_on_the_other_side(link: Link) -> None:
    sender = FolderSender(link.source, link.send)
    link.write("kept-adapters/step-3/model", b"3")
    sender.send_changes()
    sender.forget("kept-adapters/step-3")

    sender.send_changes()

    assert list_files(link.source) == {}
    assert list_files(link.target) == {"kept-adapters/step-3/model": b"3"}


def test_an_empty_file_has_one_empty_part(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert list(read_parts(path)) == [(0, b"")]
    assert UnitComplete("unit").unit == "unit"
