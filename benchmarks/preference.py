"""Preference models on one run's labels, soft, hard, clamped, shuffled, and on pairs without a
judge, at equal cost.

    python benchmarks/preference.py RUN [own | soft hard clamped shuffled | revision contrast …]

RUN is a finished run: its comparisons are split as its own preference model's were. Without names
the four labels are compared; a kind of pairs that need no judge stands alone, without any label.
Every model sees as many pairs for as many steps; a kind that has fewer repeats them. `own` is the
run's own preference model, and trains nothing. Measured on the held-out pairs against the AI's
labels, beside the rule "longer is better", and on the pairs of tests/data/pairs against readers.
The last line on stdout is JSON.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from labellers import read_pairs

from cai_lite.engine.models import load_base
from cai_lite.engine.pairs import MADE, comparisons, split
from cai_lite.engine.reward import PreferenceModel, load_preference_model
from cai_lite.measures import brier, calibration_error, share_interval
from cai_lite.records import Comparison
from cai_lite.run import Run, open_run
from cai_lite.stages.preference_model import fit
from cai_lite.texts import words

LABELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "soft": lambda p: p,
    "hard": lambda p: np.where(p == 0.5, 0.5, (p > 0.5).astype(float)),
    "clamped": lambda p: np.clip(p, 0.4, 0.6),
    "shuffled": lambda p: np.random.default_rng(0).permutation(p),
}
_ALIKE = 0.1  # lengths that differ by no more than this share are equal


def with_labels(rows: list[Comparison], name: str) -> list[Comparison]:
    """The rows with their labels changed as `LABELS` says."""
    changed = LABELS[name](np.array([row.p_a for row in rows]))
    return [row.model_copy(update={"p_a": float(p)}) for row, p in zip(rows, changed, strict=True)]


def right(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether both prefer the same answer, (pairs,); a tie counts half."""
    tie = (labels == 0.5) | (predicted == 0.5)
    return np.where(tie, 0.5, (predicted > 0.5) == (labels > 0.5))


def lengths(rows: list[Comparison]) -> np.ndarray:
    """Words of both answers, (pairs, 2)."""
    return np.array([[len(words(row.a)), len(words(row.b))] for row in rows])


def measure(predicted: np.ndarray, rows: list[Comparison]) -> dict[str, object]:
    """Agreement with the rows' labels, its interval, Brier score and calibration error."""
    labels = np.array([row.p_a for row in rows])
    found = right(predicted, labels)
    return {
        "accuracy": round(float(found.mean()), 4),
        "ci": share_interval(found),
        "n": len(rows),
        "brier": brier(predicted, labels),
        "ece": calibration_error(predicted, labels),
    }


def scored(model: PreferenceModel, rows: list[Comparison]) -> np.ndarray:
    """Scores of both answers, (pairs, 2)."""
    prompts = [row.prompt for row in rows]
    sides = [[row.a for row in rows], [row.b for row in rows]]
    return np.stack([model.scores(prompts, side).double().numpy() for side in sides], 1)


def judged(model: PreferenceModel, rows: list[Comparison]) -> dict[str, object]:
    """`measure` of a preference model, and how far it goes by length."""
    scores, counted = scored(model, rows), lengths(rows)
    predicted = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    alike = np.abs(counted[:, 0] - counted[:, 1]) <= _ALIKE * counted.max(1)
    equal = right(predicted, np.array([row.p_a for row in rows]))[alike]
    return measure(predicted, rows) | {
        "length_correlation": round(float(np.corrcoef(scores.ravel(), counted.ravel())[0, 1]), 3),
        "equal_length": {
            "accuracy": round(float(equal.mean()), 4) if len(equal) else None,
            "n": len(equal),
        },
    }


def learnt(run: Run, judged: list[Comparison], name: str) -> list[Comparison]:
    """The judged pairs with labels of that name, or as many pairs of that kind, repeated if few."""
    if name in LABELS:
        return with_labels(judged, name)
    made = MADE[name](run)
    return [made[i % len(made)] for i in range(len(judged))]


def scratch(folder: Path, kept: Path) -> Run:
    """The run's labels, and what pairs are made of, in a folder of its own."""
    for stage in ("critique_revision", "contrast", "ai_feedback"):
        shutil.copytree(folder / stage, kept / stage)
    for name in ("manifest.json", "constitution.yaml"):
        shutil.copy(folder / name, kept / name)
    return open_run(kept)


def taught(folder: Path, kept: Path, name: str) -> PreferenceModel:
    """The preference model of the labels or pairs of that name, trained in `kept`; or the run's."""
    run = open_run(folder)
    if name != "own":
        run = scratch(folder, kept)
        fit(run, learnt(run, split(run, comparisons(run))[0], name))
    return load_preference_model(load_base(run.preset), run.path("preference_model", "adapter"))


def main(folder: str, *names: str) -> None:
    """Train and judge a preference model on each kind of label or pair; print what was found."""
    run = open_run(Path(folder))
    readers, held_out = read_pairs(), split(run, comparisons(run))[1]
    found: dict[str, object] = {}
    for name in names or LABELS:
        with tempfile.TemporaryDirectory() as place:
            model = taught(Path(folder), Path(place), name)
            found[name] = {"held_out": judged(model, held_out), "readers": judged(model, readers)}
        print(name, json.dumps(found[name]), flush=True)
    for name, rows in (("held_out", held_out), ("readers", readers)):
        counted = lengths(rows)
        longer = 0.5 + 0.5 * np.sign(counted[:, 0] - counted[:, 1])
        found[f"longer, {name}"] = measure(longer, rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
