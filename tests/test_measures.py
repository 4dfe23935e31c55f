"""Intervals keep their width where all rows agree; calibration is told with its own doubt."""

import numpy as np
import pytest

from cai_lite.errors import InputError
from cai_lite.measures import (
    bin_of,
    bootstrap_interval,
    brier,
    calibration_error,
    calibration_floor,
    calibration_interval,
    holm,
    share_interval,
)


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


def _calibrated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and labels that come true as often as predicted."""
    generator = np.random.default_rng(seed)
    predicted = generator.random(n)
    return predicted, (generator.random(n) < predicted).astype(float)


def test_brier_is_the_mean_squared_gap() -> None:
    assert brier([1.0, 0.0], [1, 0]) == 0
    assert brier([0.5, 0.5], [1, 0]) == 0.25
    assert brier([0.9, 0.2, 0.6], [1, 0.4, 0]) == pytest.approx((0.01 + 0.04 + 0.36) / 3, abs=1e-4)


def test_the_calibration_error_weighs_the_gap_of_each_bin_by_its_rows() -> None:
    predicted, labels = [0.1, 0.3, 0.9, 1.0], [0, 1, 1, 0.5]
    # in two bins: |0.2 - 0.5| of two rows, |0.95 - 0.75| of two rows
    assert calibration_error(predicted, labels, bins=2) == pytest.approx(0.25)
    assert calibration_error(predicted, labels, bins=1) == pytest.approx(0.05)
    # in ten: rows alone but for the last two, whose bin holds 0.9 and 1
    assert calibration_error(predicted, labels) == pytest.approx((0.1 + 0.7 + 0.4) / 4)
    assert bin_of(np.array([0.0, 0.49, 0.5, 1.0]), 2).tolist() == [0, 0, 1, 1]


def test_the_calibration_interval_is_seeded_and_narrows_with_rows() -> None:
    few, many = _calibrated(50, 1), _calibrated(5000, 1)
    interval = calibration_interval(*few, draws=500, seed=3)
    assert interval == calibration_interval(*few, draws=500, seed=3)
    assert interval != calibration_interval(*few, draws=500, seed=4)
    low, high = calibration_interval(*many, draws=500, seed=3)
    assert high - low < (interval[1] - interval[0]) / 4


def test_the_calibration_interval_resamples_rows_with_their_labels() -> None:
    predicted = np.linspace(0, 1, 101)
    assert calibration_interval(predicted, predicted, draws=200, seed=0) == [0, 0]
    sure = calibration_interval(np.ones(400), np.r_[np.zeros(100), np.ones(300)], 4000, 0)
    assert sure == pytest.approx([0.25 - 0.0424, 0.25 + 0.0424], abs=0.005)  # a plain share


def test_the_floor_is_what_chance_alone_shows() -> None:
    shown = [calibration_error(*_calibrated(40, seed)) for seed in range(400)]
    floors = [calibration_floor(_calibrated(40, seed)[0], 50, seed + 1) for seed in range(400)]
    assert np.mean(shown) == pytest.approx(np.mean(floors), abs=0.01)
    assert np.mean(floors) > 0.1  # perfect, and yet so far off at 40 rows
    assert calibration_floor(_calibrated(4000, 0)[0], 50, 1) < 0.02
    assert calibration_floor([0.0, 1.0, 1.0], 50, 0) == 0  # no doubt, no chance
    assert calibration_floor([0.5] * 100, 4000, 0) == pytest.approx(0.0399, abs=0.002)
    # the mean of |heads/100 - 1/2|, about 0.5 * sqrt(2 / (100 * pi))


@pytest.mark.parametrize(
    ("predicted", "labels", "named"),
    [
        ([], [], r"shape \(0,\)"),
        ([0.1, 0.2], [1.0], r"shape \(2,\) and labels \(1,\)"),
        ([0.1, 1.2], [1.0, 0.0], "prediction 1 is 1.2; expected a probability"),
        ([0.1, 0.2], [np.nan, 0.0], "label 0 is nan"),
    ],
)
def test_calibration_refuses_what_is_no_probability(predicted, labels, named: str) -> None:
    for measure in (
        brier,
        calibration_error,
        lambda p, y: calibration_interval(p, y, draws=2, seed=0),
    ):
        with pytest.raises(InputError, match=named):
            measure(predicted, labels)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_holm_finds_something_false_as_seldom_as_one_test() -> None:
    rng = np.random.default_rng(0)
    false = [min(holm(list(rng.random(12)))) < 0.05 for _ in range(2000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.02)
