"""Examples of preferences as a dataset of sequences, those of an example next to each other.

B: sequences in a batch.
"""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset, Features, Sequence as ListOf, Value
from torch.utils.data import Sampler

from app.core.specs.job import TrainingSpec
from app.core.specs.methods import KtoSpec, PreferenceSpec
from worker.planning.preference_examples import Examples, count_sequences, measure_examples
from worker.planning.row_order import order_rows
from worker.templates.preference_tokens import ComparisonTokens, LabelledTokens
from worker.templates.token_rows import IGNORED

_TOKENS = Features({"input_ids": ListOf(Value("int32")), "labels": ListOf(Value("int32"))})
_LABELLED = Features({**_TOKENS, "is_desirable": Value("bool")})

Tokens = tuple[list[int], list[int]]  # ids and labels


class ExampleOrder(Sampler[int]):
    """The sequences of an epoch: whole examples, in the order that seed and epoch alone give.

    `batch`: so many examples in turn stay together in every epoch, and the last ones, where there are fewer,
    stay last: KTO compares the answers of a batch with answers of that batch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        sequences: int,
        seed: int,
        group_size: int | None = None,
        batch: int | None = None,
    ) -> None:
        self._lengths = lengths
        self._sequences = sequences
        self._seed = seed
        self._group_size = group_size
        self._batch = batch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0; the trainer's data loader calls this, also where it skips rows to resume."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) * self._sequences

    def __iter__(self) -> Iterator[int]:
        for example in self._order_batches() if self._batch else self._order_examples():
            first = example * self._sequences
            yield from range(first, first + self._sequences)

    def _order_examples(self) -> list[int]:
        return order_rows(self._lengths, seed=self._seed, epoch=self._epoch, group_size=self._group_size)

    def _order_batches(self) -> list[int]:
        assert self._batch
        count = len(self._lengths)
        whole = count // self._batch
        order = order_rows([1] * whole, seed=self._seed, epoch=self._epoch, group_size=None) if whole else []
        starts = [place * self._batch for place in order]
        in_batches = [place for start in starts for place in range(start, start + self._batch)]
        return [*in_batches, *range(whole * self._batch, count)]


def arrange_training(
    examples: Examples, settings: PreferenceSpec, training: TrainingSpec, *, ranks: int = 1
) -> tuple[Dataset, ExampleOrder]:
    """The sequences to train on, and their order. `training`: without `auto` for the batch size.

    `ranks`: processes that compute a step together.
    """
    size = training.per_device_train_batch_size
    assert size != "auto"
    lengths = [sum(tokens for tokens, _ in one) for one in measure_examples(examples, settings)]
    group_size = size * training.gradient_accumulation_steps * ranks if training.group_by_length else None
    sequences = count_sequences(settings)
    is_batched = isinstance(settings, KtoSpec) and sequences > 1
    if is_batched:
        # The batches are made once: in each, prompts meet the answers of their neighbours.
        order = order_rows(lengths, seed=training.seed, epoch=0, group_size=group_size)
        examples = [examples[place] for place in order]  # type: ignore[assignment]
        lengths = [lengths[place] for place in order]
    dataset = make_dataset(examples, settings, batch=size)
    return dataset, ExampleOrder(
        lengths,
        sequences=sequences,
        seed=training.seed,
        group_size=group_size,
        batch=size if is_batched else None,
    )


def make_dataset(examples: Examples, settings: PreferenceSpec, *, batch: int) -> Dataset:
    """The sequences of the examples, in their order; `batch`: so many examples are computed together."""
    sequences: list[Tokens] = []
    desirable: list[bool] = []
    labelled = [one for one in examples if isinstance(one, LabelledTokens)]
    longest = max((one.tokens for one in labelled), default=0)
    for example in examples:
        if isinstance(example, ComparisonTokens):
            sequences += [(one.input_ids, one.labels) for one in (example.chosen, example.rejected)]
    for place, example in enumerate(labelled):
        sequences.append((example.example.input_ids, example.example.labels))
        desirable.append(example.label)
        if count_sequences(settings) > 1:
            other = labelled[_find_neighbour(place, len(labelled), batch)]
            sequences.append(_meet(example, other, longest))
            desirable.append(False)
    columns = {"input_ids": [ids for ids, _ in sequences], "labels": [labels for _, labels in sequences]}
    if not desirable:
        return Dataset.from_dict(columns, features=_TOKENS)
    return Dataset.from_dict({**columns, "is_desirable": desirable}, features=_LABELLED)


def add_reference(dataset: Dataset, log_probs: torch.Tensor) -> Dataset:
    """The dataset with the reference model's log-probability of each answer."""
    return dataset.add_column("reference", log_probs.tolist())


def _find_neighbour(place: int, count: int, batch: int) -> int:
    """The example whose answer an example's prompt meets: the one before it in the batch, the last one for
    the first; of a batch of one, that of the batch before."""
    start = place - place % batch
    size = min(batch, count - start)
    return start + (place - start - 1) % size if size > 1 else (place - 1) % count


def _meet(example: LabelledTokens, other: LabelledTokens, longest: int) -> Tokens:
    """The prompt of an example with the answer of another one, cut to the length of the longest example.

    The example itself where no learned token of that answer is left.
    """
    ids = [*example.prompt_ids, *other.completion_ids]
    labels = [IGNORED] * len(example.prompt_ids) + other.completion_labels
    if not any(label != IGNORED for label in labels[1:longest]):
        return example.example.input_ids, example.example.labels
    # The first token of a sequence has no context to be predicted from.
    return ids[:longest], [IGNORED, *labels[1:longest]]
