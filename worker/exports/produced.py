"""What a format produces: a folder of files, and how each model among them is loaded for verification."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from app.core.exports.results import Agreement
from app.core.specs.export import GgufType

Load = Callable[[torch.dtype], PreTrainedModel]


@dataclass(frozen=True)
class ProducedModel:
    """A model among an export's files.

    `file` is its name where one file is the whole model, `type` that file's GGUF type.
    """

    load: Load
    file: str | None = None
    type: GgufType | None = None


@dataclass(frozen=True)
class ProducedFiles:
    """The folder with an export's files, the models in it, and what users of the files should know."""

    folder: Path
    models: list[ProducedModel]
    loaded_with: str = "transformers"
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_one(
        cls, folder: Path, load: Load, loaded_with: str = "transformers", notes: Sequence[str] = ()
    ) -> "ProducedFiles":
        """Files that are one model together."""
        return cls(folder, [ProducedModel(load)], loaded_with, list(notes))


@dataclass(frozen=True)
class VerifiedModels:
    """The agreement of each model of an export, with the file's name where one file is the whole model.

    Of several files, those below their threshold are not handed out, and the others are.
    """

    compared: list[tuple[str | None, Agreement]]

    @property
    def accepted(self) -> list[tuple[str | None, Agreement]]:
        """The models that reached their threshold."""
        return [pair for pair in self.compared if pair[1].mismatch is None]

    @property
    def agreement(self) -> Agreement:
        """The agreement of the model that is furthest from the live adapter, of those handed out."""
        found = [agreement for _file, agreement in self.accepted or self.compared]
        return max(found, key=lambda agreement: agreement.mean_kl)

    @property
    def by_file(self) -> dict[str, Agreement]:
        """The agreement of each file that is a model and is handed out."""
        return {file: agreement for file, agreement in self.accepted if file is not None}

    def leave_out(self, folder: Path) -> list[str]:
        """Remove the files below their threshold. Returns what users should know of each."""
        notes = []
        for file, agreement in self.compared:
            if file is not None and agreement.mismatch is not None:
                (folder / file).unlink()
                notes.append(
                    f"{file} is not handed out: {agreement.mismatch} (mean divergence "
                    f"{agreement.mean_kl:.2g} nats, {agreement.greedy_match:.0%} of the next tokens)."
                )
        return notes
