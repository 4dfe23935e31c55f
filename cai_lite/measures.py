"""Numbers with their uncertainty: intervals of shares and means, and calibration."""

from collections.abc import Sequence

import numpy as np

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


def calibration_error(
    predicted: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray, bins: int = 10
) -> float:
    """Expected calibration error of probabilities against soft labels in 0..1, both (rows,).

    Rows are binned by their prediction; the gaps between mean prediction and mean label are
    weighted by the rows in a bin.
    """
    predicted, labels = np.asarray(predicted, dtype=float), np.asarray(labels, dtype=float)
    places = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = [
        (places == b).mean() * abs(predicted[places == b].mean() - labels[places == b].mean())
        for b in np.unique(places)
    ]
    return round(float(sum(gaps)), 4)
