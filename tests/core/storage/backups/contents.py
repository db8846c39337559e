"""What is in a backup, and backups of one file or another."""

import io
import tarfile
from pathlib import Path

from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.backups.backup import write_backup
from app.core.storage.database import Database
from tests.factories import make_adapter, make_dataset


def add_adapter(database: Database, store: ArtifactStore, folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "adapter_model.safetensors").write_bytes(b"weights")
    store.put_folder("adapters/ad_0000000000000000", folder / "weights")
    with database.transaction() as session:
        make_adapter(session)


def add_dataset(database: Database, store: ArtifactStore, folder: Path) -> str:
    with database.transaction() as session:
        return make_dataset(session, store, folder).id


def take(settings: Settings) -> bytes:
    tar = io.BytesIO()
    write_backup(settings, tar)
    return tar.getvalue()


def members(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]


def rebuilt(contents: dict[str, bytes]) -> io.BytesIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    target.seek(0)
    return target
