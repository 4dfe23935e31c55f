"""Numbers with their uncertainty: intervals of shares and means, and calibration."""

from collections.abc import Sequence

import numpy as np

from .errors import InputError

_Z = 1.959964  # 95% of a normal distribution lie so many standard deviations around its mean


def share_interval(values: Sequence[float] | np.ndarray) -> list[float]:
    """95% Wilson score interval of a share, [low, high]; `values`, (rows,), are 0 or 1.

    It keeps its width where all rows agree. A tie may count half: the interval is then too wide
    rather than too narrow.
    """
    rows = np.asarray(values, dtype=float)
    n, share = len(rows), rows.mean()
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return [round(max(float(centre - reach), 0.0), 4), round(min(float(centre + reach), 1.0), 4)]


def bootstrap_interval(values: Sequence[float] | np.ndarray, draws: int, seed: int) -> list[float]:
    """95% interval of the mean of `values`, (rows,), by resampling rows: [low, high].

    For a paired difference pass the differences; for a plain share use `share_interval`. Rows that
    are all equal leave nothing to resample: if they lie in −1..1, as differences of shares do, the
    interval is by the rule of three (see `_rule_of_three`); else it has no width.
    """
    rows = np.asarray(values, dtype=float)
    if np.ptp(rows) == 0 and abs(rows[0]) <= 1:
        return _rule_of_three(float(rows[0]), len(rows))
    picks = np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))
    low, high = np.quantile(rows[picks].mean(1), [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


def _rule_of_three(value: float, n: int) -> list[float]:
    """What n equal rows in −1..1 let one say of their mean, [low, high].

    A share u of other rows goes unseen n times with probability (1 − u)ⁿ, which is 5% at
    u = 1 − 0.05^(1/n), about 3/n (Hanley & Lippman-Hand 1983); those rows may be −1 or 1. For n
    differences of 0 that is ±3/n.
    """
    unseen = 1 - 0.05 ** (1 / n)
    return [round(value - unseen * (value + 1), 4), round(value + unseen * (1 - value), 4)]


def holm(p: Sequence[float]) -> list[float]:
    """p of several tests, (tests,), corrected for their number so that one false find is as rare.

    Holm 1979: the smallest is multiplied by how many there are, the next by one less, and none
    comes out below one that was smaller.
    """
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    grown = np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors).clip(max=1)
    found = np.empty(len(p))
    found[order] = grown
    return [float(one) for one in found]


def brier(predicted: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray) -> float:
    """Mean squared gap of probabilities to their labels in 0..1, soft ones too, both (rows,).

    0 is perfect; always saying one half costs 0.25 against labels of 0 and 1. Raises InputError
    as `calibration_error` does.
    """
    p, y = _matched(predicted, labels)
    return round(float(((p - y) ** 2).mean()), 4)


def calibration_error(
    predicted: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray, bins: int = 10
) -> float:
    """Expected calibration error of probabilities against soft labels in 0..1, both (rows,).

    Rows are binned by their prediction; the gaps between mean prediction and mean label are
    weighted by the rows in a bin. Raises InputError for no rows, unequal numbers of them, or a
    value outside 0..1.
    """
    return round(_calibration_error(*_matched(predicted, labels), bins), 4)


def calibration_interval(
    predicted: Sequence[float] | np.ndarray,
    labels: Sequence[float] | np.ndarray,
    draws: int,
    seed: int,
    bins: int = 10,
) -> list[float]:
    """95% percentile interval of `calibration_error`, by resampling rows: [low, high].

    With few rows the error is biased upwards, since chance alone opens a gap in every bin, and
    resampled rows open it further: the interval may even lie above the error itself. Compare with
    `calibration_floor`, what a perfectly calibrated predictor would show with as many rows.
    Raises InputError as `calibration_error` does.
    """
    p, y = _matched(predicted, labels)
    picks = np.random.default_rng(seed).integers(len(p), size=(draws, len(p)))
    errors = [_calibration_error(p[pick], y[pick], bins) for pick in picks]
    low, high = np.quantile(errors, [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


def calibration_floor(
    predicted: Sequence[float] | np.ndarray, draws: int, seed: int, bins: int = 10
) -> float:
    """Mean `calibration_error` if labels of 0 and 1 were drawn from `predicted`, (rows,), itself.

    Soft labels are less noisy than drawn ones, so against them this floor is too high. Raises
    InputError as `calibration_error` does.
    """
    p, _ = _matched(predicted, predicted)
    drawn = np.random.default_rng(seed).random((draws, len(p))) < p
    return round(float(np.mean([_calibration_error(p, row, bins) for row in drawn])), 4)


def bin_of(predicted: np.ndarray, bins: int) -> np.ndarray:
    """Which of equally wide bins of 0..1 each probability falls in, (rows,); 1 is in the last."""
    return np.minimum((predicted * bins).astype(int), bins - 1)


def _calibration_error(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """A bin's share of rows times its gap of means is its summed gap over all rows."""
    return float(np.abs(np.bincount(bin_of(p, bins), p - y)).sum() / len(p))


def _matched(
    predicted: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, (rows,), once they are known to be probabilities of the same rows."""
    p, y = np.asarray(predicted, dtype=float), np.asarray(labels, dtype=float)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise InputError(
            f"predictions have shape {p.shape} and labels {y.shape}; expected one row or more and "
            "as many of each: pass a label for every prediction"
        )
    for name, rows in (("prediction", p), ("label", y)):
        outside = np.flatnonzero(~((rows >= 0) & (rows <= 1)))  # nan is outside too
        if len(outside):
            raise InputError(
                f"{name} {outside[0]} is {rows[outside[0]]:g}; expected a probability, 0..1: turn "
                "a score into one by the logistic function, and leave out rows that have none"
            )
    return p, y
