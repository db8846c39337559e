"""Where preflight finds things on this machine: base models, datasets, the disk. Downloads no weights."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Row, read_rows
from app.core.engine.base_models import find_folder
from app.core.engine.preflight import DatasetRef, Notice
from app.core.errors.datasets import DatasetNotFound
from app.core.settings import TrainingPath
from app.core.storage.artifacts import ArtifactStore
from worker.models import base_model
from worker.models.device import Device
from worker.templates.choice import TemplateSource, read_model_type, set_template

MAX_ROWS = 20_000
MAX_BYTES = 64 << 20
NO_TEMPLATE = Notice(
    code="no_chat_template",
    message="The base model has no chat template; conversations are rendered plainly.",
)


class Place(BaseModel):
    """What a worker's preflight needs to know of it."""

    models_folder: Path
    artifacts_url: str
    cache_folder: Path
    device: Device
    free_bytes: int
    is_busy: bool
    path: TrainingPath

    def find_model(self, name: str) -> tuple[Path, list[Notice]]:
        """A folder with the model's config and tokenizer, and a word where its weights are not here yet.

        Raises ModelMissing, ModelGated, HubUnreachable.
        """
        folder = find_folder(name, self.models_folder) or base_model.find_downloaded(name)
        if folder:
            return folder, []
        message = f"{name} is not on this machine yet: the job downloads it first."
        notice = Notice(code="model_not_here", message=message)
        return base_model.download_description(name, self.cache_folder / "descriptions"), [notice]


def load_tokenizer(folder: Path, wanted: str | None) -> tuple[PreTrainedTokenizerBase, TemplateSource]:
    """A base model's tokenizer with the template that a job would use. Raises InvalidRequest."""
    tokenizer = base_model.load_tokenizer(folder)
    source = set_template(tokenizer, model_type=read_model_type(folder), wanted=wanted)
    return tokenizer, source


def sampling_step(dataset: DatasetRef) -> int:
    """1: every row is read; n: every n-th, so that a large dataset takes seconds."""
    return max(1, math.ceil(dataset.rows / MAX_ROWS), math.ceil(dataset.size_bytes / MAX_BYTES))


def open_rows(place: Place, dataset: DatasetRef, *, step: int = 1) -> Iterator[tuple[int, Row]]:
    """Every `step`-th row with its line. Raises DatasetNotFound."""
    try:
        lines = ArtifactStore(place.artifacts_url).open(dataset.artifact)
    except FileNotFoundError as error:
        raise DatasetNotFound("The dataset's file is gone.", hint="Upload it again.") from error
    with lines:
        yield from read_rows(itertools.islice(lines, 0, None, step))
