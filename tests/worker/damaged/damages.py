"""Damages of a model's folder: functions that change its files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]
DEEP = "[" * 100_000 + "]" * 100_000


def make_damaged(models_folder: Path, source: Path, name: str, damage: Damage) -> Path:
    """A copy of the model in `source` under another name, damaged."""
    folder = shutil.copytree(source, models_folder / name)
    damage(folder)
    return folder


def write(name: str, content: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def remove(*patterns: str) -> Damage:
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return damage


def change(name: str, **fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content.update(fields)
        (folder / name).write_text(json.dumps(content))

    return damage


def drop(name: str, *fields: str) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for field in fields:
            content.pop(field, None)
        (folder / name).write_text(json.dumps(content))

    return damage


def truncate(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def in_turn(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def as_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def as_loop(name: str) -> Damage:
    """A symbolic link to itself, which no user can read, root included."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return damage


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")
