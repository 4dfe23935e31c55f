"""Numbers with their uncertainty: bootstrap intervals and calibration."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(values: Sequence[float] | np.ndarray, draws: int, seed: int) -> list[float]:
    """95% interval of the mean of `values`, (rows,), by resampling rows: [low, high].

    For a paired difference pass the differences.
    """
    rows = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))
    low, high = np.quantile(rows[picks].mean(1), [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


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
