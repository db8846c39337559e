"""The reference model's log-probability of every answer, computed before the first step and saved.

The reference model is the model as the job begins: the base model, whose new adapter changes nothing yet, or
the adapter that the job continues from. So there is no second model or adapter in memory, and an epoch after
the first costs nothing for it. What is computed is saved in the job's folder: an attempt that resumes reads
it, and so learns from the same numbers.

B: sequences in a batch.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from worker.training.attempt import TrainingAttempt
from worker.training.preferences.examples import add_reference
from worker.training.preferences.trainer import PreferenceTrainer
from worker.training.ranks.world import World

FILE = "reference.safetensors"
_SAVE_SECONDS = 30.0


def compute_reference(
    attempt: TrainingAttempt, trainer: PreferenceTrainer, *, clock: Callable[[], float] = time.monotonic
) -> None:
    """Add the reference model's log-probabilities to the trainer's datasets, where its method needs them.

    Called before weights change, also where the job then resumes from a checkpoint. Raises Stopped, and
    OutOfMemory where a single sequence does not fit.
    """
    if not trainer.needs_reference:
        return
    parts: dict[str, tuple[Dataset, Sequence[int]]] = {"train": (trainer.train_dataset, _find_read(trainer))}
    if trainer.eval_dataset is not None:
        rows = len(trainer.eval_dataset) - (not attempt.world.is_alone)  # without the filler
        parts["eval"] = (trainer.eval_dataset, range(rows))
    saved = _SavedReference(
        attempt.request.job_folder / FILE, {name: one for name, (one, _) in parts.items()}
    )
    # What rank 0 has read, so that all ranks know what is missing.
    saved.values = attempt.world.from_first(saved.values)
    missing = {name: [row for row in rows if saved.lacks(name, row)] for name, (_, rows) in parts.items()}
    count = sum(map(len, missing.values()))
    if count:
        attempt.say(f"Reference log-probabilities of {count:,} answers are computed.")
        began = clock()
        _fill_in(attempt, trainer, saved, missing, clock)
        saved.merge(attempt.world)
        attempt.say(f"Reference log-probabilities are computed, in {clock() - began:.1f} s.")
    trainer.train_dataset = add_reference(trainer.train_dataset, saved.values["train"])
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = add_reference(trainer.eval_dataset, saved.values["eval"])


class _SavedReference:
    """Log-probabilities by dataset and sequence, NaN where not computed, in a file."""

    def __init__(self, path: Path, datasets: dict[str, Dataset]) -> None:
        self._path = path
        self._rows = {name: _hash(dataset) for name, dataset in datasets.items()}
        found = _read(path)
        self.values = {
            name: found.get(self._key(name), torch.full((len(dataset),), torch.nan))
            for name, dataset in datasets.items()
        }

    def lacks(self, name: str, row: int) -> bool:
        """Whether the sequence's log-probability has not been computed."""
        return bool(self.values[name][row].isnan())

    def merge(self, world: World) -> None:
        """Take over what other ranks have computed, and write it."""
        for others in world.gather(self.values):
            for name, values in others.items():
                self.values[name] = torch.where(self.values[name].isnan(), values, self.values[name])
        if world.is_first and not world.is_alone:
            self.save()

    def save(self) -> None:
        """Write all that is known; the file is complete or the one before."""
        temporary = self._path.with_suffix(".writing")
        save_file({self._key(name): values for name, values in self.values.items()}, temporary)
        temporary.replace(self._path)

    def _key(self, name: str) -> str:
        return f"{name}-{self._rows[name]}"


def _fill_in(
    attempt: TrainingAttempt,
    trainer: PreferenceTrainer,
    saved: _SavedReference,
    missing: dict[str, list[int]],
    clock: Callable[[], float],
) -> None:
    """Compute this rank's part of what is missing, saving on the way and at a stop."""
    total, finished, saved_at = sum(map(len, missing.values())), 0, clock()
    was_training = trainer.model.training
    trainer.model.eval()
    try:
        for name, rows in missing.items():
            dataset = trainer.train_dataset if name == "train" else trainer.eval_dataset
            size = trainer.args.train_batch_size if name == "train" else trainer.args.eval_batch_size
            chunks = list(_batches(rows, size))
            for first in range(0, len(chunks), attempt.world.size):
                attempt.stop_if_asked()
                place = first + attempt.world.rank
                if place >= len(chunks):
                    continue
                chunk = chunks[place]
                batch = trainer._prepare_inputs(trainer.data_collator([dataset[row] for row in chunk]))
                saved.values[name][chunk] = trainer.measure_in_evaluation(batch).cpu()
                finished += len(chunk) * attempt.world.size
                if attempt.world.is_first and clock() - saved_at >= _SAVE_SECONDS:
                    saved.save()
                    attempt.say(f"Reference log-probabilities: {finished:,} of {total:,} answers.")
                    saved_at = clock()
    finally:
        trainer.model.train(was_training)
        if attempt.world.is_first:
            saved.save()


def _find_read(trainer: PreferenceTrainer) -> list[int]:
    """The sequences that the job's steps will read, in the order of the first epoch."""
    order = list(trainer.order)
    steps, args = trainer.args.max_steps, trainer.args
    if steps <= 0:
        return order
    of_a_step = args.train_batch_size * args.gradient_accumulation_steps * trainer.world.size
    return order[: steps * of_a_step]


def _batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _hash(dataset: Dataset) -> str:
    """A hash of the sequences: others, after a change of the batch size, have other log-probabilities."""
    digest = hashlib.sha256()
    for batch in dataset.with_format("numpy").iter(batch_size=1000):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes() + labels.tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> dict[str, torch.Tensor]:
    """What was saved; nothing where there is no such file, or a damaged one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return {}
