"""Which of an alias's targets serves whose request."""

from collections import Counter

import pytest

from app.core.aliases.shares import AliasTarget, assign

PEOPLE = [f"person-{number}" for number in range(4000)]


def targets(**shares: float) -> list[AliasTarget]:
    return [
        AliasTarget(name=name, base_model="owner/model", adapter=f"ad_{name}", share=share)
        for name, share in shares.items()
    ]


def serve(people: list[str], **shares: float) -> dict[str, str]:
    return {person: assign("support", targets(**shares), subject=person).name for person in people}


@pytest.mark.parametrize(
    "shares", [{"v1": 0.9, "v2": 0.1}, {"v1": 0.5, "v2": 0.5}, {"v1": 0.2, "v2": 0.3, "v3": 0.5}]
)
def test_each_model_serves_its_share_of_the_people(shares: dict[str, float]) -> None:
    counts = Counter(serve(PEOPLE, **shares).values())

    assert {name: counts[name] / len(PEOPLE) for name in shares} == pytest.approx(shares, abs=0.03)


def test_the_order_in_which_models_are_named_changes_nothing() -> None:
    assert serve(PEOPLE, v1=0.7, v2=0.3) == serve(PEOPLE, v2=0.3, v1=0.7)


def test_a_model_whose_share_grows_only_gains_people() -> None:
    before, after = serve(PEOPLE, v1=0.9, v2=0.1), serve(PEOPLE, v1=0.5, v2=0.5)

    moved = Counter((before[person], after[person]) for person in PEOPLE if before[person] != after[person])
    assert set(moved) == {("v1", "v2")}
    assert moved["v1", "v2"] / len(PEOPLE) == pytest.approx(0.4, abs=0.03)


def test_a_model_that_is_added_takes_people_and_moves_nobody_else() -> None:
    before, after = serve(PEOPLE, v1=0.5, v2=0.5), serve(PEOPLE, v1=0.4, v2=0.4, v3=0.2)

    assert {after[person] for person in PEOPLE if before[person] != after[person]} == {"v3"}


def test_who_is_in_the_trial_of_one_alias_is_not_by_that_in_another_s() -> None:
    other = {person: assign("sales", targets(v1=0.5, v2=0.5), subject=person).name for person in PEOPLE}
    support = serve(PEOPLE, v1=0.5, v2=0.5)

    same = sum(other[person] == support[person] for person in PEOPLE)
    assert same / len(PEOPLE) == pytest.approx(0.5, abs=0.05)


def test_a_conversation_stays_with_its_model_while_the_alias_points_there() -> None:
    shared = targets(v1=0.5, v2=0.5)
    elsewhere = next(person for person, name in serve(PEOPLE, v1=0.5, v2=0.5).items() if name == "v1")

    assert assign("support", shared, subject=elsewhere, served_before="ad_v2").name == "v2"
    assert assign("support", shared, subject=elsewhere, served_before="ad_gone").name == "v1"


def test_requests_that_name_nobody_are_shared_at_random() -> None:
    drawn = Counter(assign("support", targets(v1=0.9, v2=0.1), subject=None).name for _ in range(4000))

    assert drawn["v1"] / 4000 == pytest.approx(0.9, abs=0.05)
