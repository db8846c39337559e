"""Examples as sequences: those of an example stay together, and KTO's prompts meet other answers."""

import pytest

from app.core.errors import InvalidRequest
from app.core.specs.job import TrainingSpec
from app.core.specs.methods import DpoSpec, KtoSpec
from worker.planning.preference_examples import choose_examples, measure_examples
from worker.templates.preference_tokens import ComparisonTokens, LabelledTokens
from worker.training.preferences.examples import arrange_training, make_dataset


def comparison(number: int) -> ComparisonTokens:
    """The prompt is the number, the chosen answer 50 and so many tokens, the rejected one 60."""
    chosen, rejected = [50] * (1 + number), [60]
    return ComparisonTokens(number, [number, number], chosen, rejected, chosen, rejected)


def answer(number: int, *, is_good: bool = True, tokens: int = 1) -> LabelledTokens:
    ids = [100 + number] * tokens
    return LabelledTokens(number, [number, number], ids, ids, is_good)


def read_epochs(rows: list[ComparisonTokens], settings: DpoSpec, **training: object) -> list[list[int]]:
    spec = TrainingSpec.model_validate({"per_device_train_batch_size": 2, **training})
    dataset, order = arrange_training(rows, settings, spec)
    epochs = []
    for epoch in range(2):
        order.set_epoch(epoch)
        epochs.append([dataset[index]["input_ids"][0] for index in order])
    return epochs


@pytest.mark.parametrize("group_by_length", [True, False])
def test_the_answers_of_a_comparison_stay_together(group_by_length: bool) -> None:
    first, second = read_epochs([comparison(n) for n in range(7)], DpoSpec(), group_by_length=group_by_length)
    assert first[::2] == first[1::2]
    assert sorted(first[::2]) == list(range(7))
    assert first != second
    assert sorted(second) == sorted(first)


def test_a_comparison_is_two_sequences_of_which_the_answers_are_learned() -> None:
    dataset = make_dataset([comparison(1)], DpoSpec(), batch=4)
    assert dataset["input_ids"][:] == [[1, 1, 50, 50], [1, 1, 60]]
    assert dataset["labels"][:] == [[-100, -100, 50, 50], [-100, -100, 60]]
    assert "is_desirable" not in dataset.column_names


def test_prompts_meet_the_answers_of_their_batch() -> None:
    rows = [answer(n, is_good=n % 2 == 0) for n in range(5)]
    dataset = make_dataset(rows, KtoSpec(), batch=2)
    pairs = [(ids[0], ids[-1] - 100) for ids in dataset["input_ids"]]
    # Of each row its own answer, then another one of its batch; the last row is alone in its batch.
    assert pairs == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 2), (2, 3), (3, 3), (3, 2), (4, 4), (4, 3)]
    assert dataset["is_desirable"][::2] == [True, False, True, False, True]


def test_an_answer_that_a_prompt_meets_is_cut_to_the_longest_example() -> None:
    rows = [LabelledTokens(0, [1] * 8, [9], [9], True), answer(2, tokens=6)]
    dataset = make_dataset(rows, KtoSpec(), batch=2)
    assert dataset["input_ids"][1] == [1] * 8 + [102]
    assert dataset["input_ids"][3] == [2, 2, 9]


def test_without_a_reference_to_the_batch_an_answer_is_one_sequence() -> None:
    dataset = make_dataset(
        [answer(1), answer(2, is_good=False)], KtoSpec(loss_type="apo_zero_unpaired"), batch=2
    )
    assert dataset["input_ids"][:] == [[1, 1, 101], [2, 2, 102]]
    assert dataset["is_desirable"][:] == [True, False]


def test_batches_of_kto_are_the_same_in_every_epoch_in_another_order() -> None:
    spec = TrainingSpec(per_device_train_batch_size=4)
    _dataset, order = arrange_training([answer(n, tokens=1 + n % 3) for n in range(14)], KtoSpec(), spec)
    batches = []
    for epoch in range(2):
        order.set_epoch(epoch)
        indices = list(order)
        batches.append([tuple(indices[start : start + 8]) for start in range(0, 28, 8)])
    assert batches[0] != batches[1]
    assert sorted(batches[0]) == sorted(batches[1])
    assert [len(batch) for batch in batches[1]] == [8, 8, 8, 4]


def test_kto_counts_a_comparison_as_two_labelled_answers() -> None:
    found = choose_examples([comparison(0), answer(5)], KtoSpec())
    assert [(one.line, one.label) for one in found if isinstance(one, LabelledTokens)] == [
        (0, True),
        (0, False),
        (5, True),
    ]


def test_a_method_that_compares_refuses_labelled_answers() -> None:
    with pytest.raises(InvalidRequest, match="Line 3: the row has one answer with a label") as caught:
        choose_examples([comparison(0), answer(3)], DpoSpec())
    assert caught.value.hint == 'Set method to "kto".'


def test_both_sequences_of_an_example_are_measured() -> None:
    assert measure_examples([comparison(3)], DpoSpec()) == [((6, 4), (3, 1))]
    assert measure_examples([answer(3)], KtoSpec()) == [((3, 1), (3, 1))]
