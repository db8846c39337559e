"""The random states of other ranks than the first in a checkpoint, a folder each, in transformers' form."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

Save = Callable[[str], None]


def read_random_state(save: Save) -> dict[str, bytes]:
    """The files that `save` writes into the folder that it is passed, by name."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_random_states(checkpoint: Path, states: Sequence[dict[str, bytes]]) -> None:
    """Write the files of every rank but the first."""
    for rank, files in enumerate(states):
        if rank:
            folder = folder_of(checkpoint, rank)
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)


def folder_of(checkpoint: Path, rank: int) -> Path:
    """The folder of a rank's random state; absent where the checkpoint was made by fewer ranks."""
    return checkpoint / f"rank-{rank}" if rank else checkpoint
