"""Means, pass rates and comparisons."""

import pytest

from app.core.evaluations import statistics


def test_wilsons_interval_is_that_of_the_literature() -> None:
    # Newcombe (1998), table I: 15 of 148 gives 0.0624 to 0.1605, 0 of 20 gives 0 to 0.1611.
    found = statistics.estimate_rate(15, 148)
    assert (found.low, found.high) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert statistics.estimate_rate(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert statistics.estimate_rate(0, 20).low == 0.0


@pytest.mark.parametrize("passed", [0, 7])
def test_a_rate_is_within_its_interval(passed: int) -> None:
    found = statistics.estimate_rate(passed, 7)
    assert found.low <= found.value <= found.high


def test_the_bootstrap_has_about_the_width_of_the_normal_approximation() -> None:
    values = [0.0, 1.0] * 50
    found = statistics.estimate_mean(values)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_many_values_have_the_normal_interval() -> None:
    found = statistics.estimate_mean([0.0, 1.0] * 500)
    assert (found.low, found.high) == pytest.approx((0.469, 0.531), abs=1e-3)


def test_equal_values_have_no_interval() -> None:
    assert statistics.estimate_mean([3.0, 3.0]) == statistics.Estimate(3.0, 3.0, 3.0)


def test_perplexities_have_a_geometric_mean() -> None:
    assert statistics.estimate_geometric_mean([2.0, 8.0]).value == pytest.approx(4.0)


def test_lower_is_better_turns_wins_into_losses() -> None:
    pairs = [(1.0, 2.0), (3.0, 2.0), (5.0, 2.0), (2.0, 2.0)]
    higher = statistics.compare(pairs)
    lower = statistics.compare(pairs, is_better_when_lower=True)
    assert higher is not None
    assert lower is not None
    assert (higher.wins, higher.ties, higher.losses) == (2, 1, 1)
    assert (lower.wins, lower.ties, lower.losses) == (1, 1, 2)
    assert higher.difference.value == lower.difference.value == pytest.approx(0.75)
