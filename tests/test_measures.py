"""Intervals keep their width where all rows agree."""

import numpy as np
import pytest

from cai_lite.measures import bootstrap_interval, share_interval


@pytest.mark.parametrize(
    ("ones", "n", "expected"),
    [  # Newcombe 1998, table I, method 3 (score), to four digits
        (81, 263, [0.2553, 0.3662]),
        (15, 148, [0.0624, 0.1605]),
        (0, 20, [0.0, 0.1611]),
        (1, 29, [0.0061, 0.1718]),
    ],
)
def test_the_share_interval_is_wilsons(ones: int, n: int, expected: list[float]) -> None:
    assert share_interval([1.0] * ones + [0.0] * (n - ones)) == pytest.approx(expected, abs=1e-4)


def test_a_share_of_none_or_all_is_not_known_for_certain() -> None:
    assert share_interval([False] * 24) == [0.0, 0.138]
    assert share_interval([True] * 24) == [0.862, 1.0]
    assert share_interval([0.5] * 24) == share_interval([0.0, 1.0] * 12)  # ties count half


@pytest.mark.parametrize("n", [1, 4, 24, 80])
def test_differences_that_are_all_zero_may_still_be_off(n: int) -> None:
    low, high = bootstrap_interval(np.zeros(n), 100, 0)
    assert low == -high and (1 - high) ** n == pytest.approx(0.05, abs=1e-3)
    assert high <= 3 / n  # the rule of three is this bound, rounded up


def test_equal_differences_reach_as_far_as_unseen_rows_could_pull() -> None:
    assert bootstrap_interval([1.0] * 24, 100, 0) == [pytest.approx(1 - 2 * 0.1173, abs=1e-3), 1]
    assert bootstrap_interval([-1.0] * 24, 100, 0) == [-1, pytest.approx(-0.7654, abs=1e-3)]
    assert bootstrap_interval([7.5, 7.5], 100, 0) == [7.5, 7.5]  # nothing bounds other rows


def test_differing_rows_are_resampled() -> None:
    rows = np.random.default_rng(5).normal(size=200)
    low, high = bootstrap_interval(rows, 4000, 7)
    error = rows.std() / np.sqrt(200)
    assert (low, high) == pytest.approx(
        (rows.mean() - 1.96 * error, rows.mean() + 1.96 * error), abs=0.02
    )
