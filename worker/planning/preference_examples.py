"""The examples of a preference method: which rows it learns from, how many sequences are computed of each.

Knows neither a model nor the loss.
"""

from collections.abc import Sequence

from app.core.errors import InvalidRequest
from app.core.specs.job import JobSpec
from app.core.specs.methods import KtoSpec, OrpoSpec, PreferenceSpec
from worker.templates.preference_tokens import ComparisonTokens, LabelledTokens, PreferenceTokens

Examples = list[ComparisonTokens] | list[LabelledTokens]
# (tokens, learned tokens) of every sequence of an example.
Lengths = tuple[tuple[int, int], ...]


def without_dropout(spec: JobSpec) -> JobSpec:
    """The spec of a job as it is trained: preferences compare log-probabilities, to which dropout adds noise.

    TRL turns dropout off as well.
    """
    if spec.preferences is None or not spec.lora.dropout:
        return spec
    return spec.model_copy(update={"lora": spec.lora.model_copy(update={"dropout": 0.0})})


def count_sequences(settings: PreferenceSpec | None) -> int:
    """How many sequences an example has: both answers, or an answer and that of another prompt."""
    if settings is None or (isinstance(settings, KtoSpec) and settings.loss_type == "apo_zero_unpaired"):
        return 1
    return 2


def needs_reference(settings: PreferenceSpec | None) -> bool:
    """Whether the method compares with the model that the training starts from."""
    return settings is not None and not isinstance(settings, OrpoSpec)


def choose_examples(rows: Sequence[PreferenceTokens], settings: PreferenceSpec) -> Examples:
    """The rows as the method learns them: KTO counts a comparison as two labelled answers.

    Raises InvalidRequest where a method that compares gets labelled answers.
    """
    if isinstance(settings, KtoSpec):
        labelled: list[LabelledTokens] = []
        for row in rows:
            labelled.extend(row.labelled() if isinstance(row, ComparisonTokens) else [row])
        return labelled
    comparisons = [row for row in rows if isinstance(row, ComparisonTokens)]
    if len(comparisons) < len(rows):
        line = next(row.line for row in rows if isinstance(row, LabelledTokens))
        raise InvalidRequest(
            f"Line {line}: the row has one answer with a label, and the method compares two answers.",
            param="method",
            hint='Set method to "kto".',
        )
    return comparisons


def measure_examples(examples: Examples, settings: PreferenceSpec) -> list[Lengths]:
    """(tokens, learned tokens) of every sequence of each example.

    The answer of another prompt, which KTO computes too, is taken to be as long as the example's own.
    """
    measured: list[Lengths] = []
    for example in examples:
        if isinstance(example, ComparisonTokens):
            answers = (example.chosen, example.rejected)
            measured.append(tuple((one.tokens, one.trained_tokens) for one in answers))
        else:
            measured.append(((example.tokens, example.trained_tokens),) * count_sequences(settings))
    return measured
