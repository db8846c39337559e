"""The environment of a preflight: this machine's base models, datasets and device. Downloads no weights."""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Row, read_rows
from app.core.engine.preflight import DatasetRef, Notice
from app.core.errors.datasets import DatasetNotFound
from app.core.settings import TrainingPath
from app.core.storage.artifacts import ArtifactStore
from worker.models.device import Device
from worker.models.files import description, location
from worker.templates.choice import TemplateSource, read_model_type, set_template

MAX_ROWS = 20_000
MAX_BYTES = 64 << 20
# Conversations of many turns take milliseconds to render and mask: after the first rows it is known how many.
READING_SECONDS = 20.0
_TIMED_ROWS = 64
# The first ones may wait for a process that renders.
_UNTIMED_ROWS = 8
NO_TEMPLATE = Notice(
    code="no_chat_template",
    message="The base model has no chat template; conversations are rendered plainly.",
)


class PreflightEnvironment(BaseModel):
    """The state of a worker that preflights and previews depend on."""

    models_folder: Path
    artifacts_url: str
    cache_folder: Path
    device: Device
    free_bytes: int
    is_busy: bool
    path: TrainingPath

    def find_model(self, name: str) -> tuple[Path, list[Notice]]:
        """A folder with the model's config and tokenizer, and a notice where its weights are not here yet.

        Raises ModelMissing, ModelGated, HubUnreachable.
        """
        folder = location.find_here(name, self.models_folder) or location.find_downloaded(name)
        if folder:
            return folder, []
        message = f"{name} is not on this machine yet: the job downloads it first."
        notice = Notice(code="model_not_here", message=message)
        return location.download_description(name, self.cache_folder / "descriptions"), [notice]


def load_tokenizer(folder: Path, wanted: str | None) -> tuple[PreTrainedTokenizerBase, TemplateSource]:
    """A base model's tokenizer with the template that a job would use. Raises InvalidRequest."""
    tokenizer = description.load_tokenizer(folder)
    source = set_template(tokenizer, model_type=read_model_type(folder), wanted=wanted)
    return tokenizer, source


def sampling_step(dataset: DatasetRef) -> int:
    """Read every n-th row: 1 for most datasets, more for large ones, so that they take seconds."""
    return max(1, math.ceil(dataset.rows / MAX_ROWS), math.ceil(dataset.size_bytes / MAX_BYTES))


def sample_rows(environment: PreflightEnvironment, dataset: DatasetRef) -> Iterator[tuple[int, Row]]:
    """Yield rows that the caller can work through in about `READING_SECONDS`, with their line numbers.

    That is every row of most datasets. The time between two rows is the caller's. Raises DatasetNotFound.
    """
    step = sampling_step(dataset)
    began, every = time.monotonic(), 1
    for index, pair in enumerate(open_rows(environment, dataset, step=step)):
        if index == _UNTIMED_ROWS:
            began = time.monotonic()
        elif index == _TIMED_ROWS:
            seconds_each = (time.monotonic() - began) / (_TIMED_ROWS - _UNTIMED_ROWS)
            every = max(1, math.ceil(seconds_each * dataset.rows / step / READING_SECONDS))
        if index % every == 0:
            yield pair


def open_rows(
    environment: PreflightEnvironment, dataset: DatasetRef, *, step: int = 1
) -> Iterator[tuple[int, Row]]:
    """Yield every `step`-th row with its line number. Raises DatasetNotFound."""
    try:
        lines = ArtifactStore(environment.artifacts_url).open(dataset.artifact)
    except FileNotFoundError as error:
        raise DatasetNotFound("The dataset's file is gone.", hint="Upload it again.") from error
    with lines:
        yield from read_rows(itertools.islice(lines, 0, None, step))
