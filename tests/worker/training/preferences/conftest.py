"""Jobs that learn from preferences, on the tiny model."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from app.core.datasets.rows import (
    AnswerComparison,
    DatasetFormat,
    LabelledAnswer,
    Message,
    Preference,
    write_row,
)
from tests.worker.training.conftest import TOPICS, MakeRequest
from worker.processes.reports import TrainingRequest

MakePreferenceRequest = Callable[..., TrainingRequest]


def compare(index: int) -> AnswerComparison:
    """Polite answers are preferred; prompts and answers have different lengths."""
    question = f"How do I {TOPICS[index % 5]}? " * (1 + index % 3)
    chosen = f"Please send POST number {index}." + " Then read." * (index % 2)
    rejected = f"No. {index} times no." + " Go." * (index % 3)
    return AnswerComparison(
        (Message("user", question),), (Message("assistant", chosen),), (Message("assistant", rejected),)
    )


def label(index: int) -> LabelledAnswer:
    """Good and bad answers in turn, two good ones for each bad one."""
    row, is_good = compare(index), index % 3 != 2
    return LabelledAnswer(row.prompt, row.chosen if is_good else row.rejected, is_good)


def comparisons(count: int = 10) -> list[AnswerComparison]:
    return [compare(index) for index in range(count)]


def labelled(count: int = 10) -> list[LabelledAnswer]:
    return [label(index) for index in range(count)]


@pytest.fixture
def make_preference_request(make_request: MakeRequest) -> MakePreferenceRequest:
    """A request of a preference method; rows default to ten comparisons."""

    def make(name: str = "job", *, rows: Sequence[Preference] | None = None, **spec: Any) -> TrainingRequest:
        rows = comparisons() if rows is None else rows
        request = make_request(name, **{"method": "dpo", **spec})
        request.dataset.write_bytes(b"".join(write_row(line, row) for line, row in enumerate(rows, start=1)))
        is_labelled = isinstance(rows[0], LabelledAnswer)
        kind = DatasetFormat.LABELLED_ANSWERS if is_labelled else DatasetFormat.COMPARISONS
        return request.model_copy(update={"dataset_format": kind})

    return make
