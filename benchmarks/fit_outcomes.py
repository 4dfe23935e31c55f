"""Fit the outcome classifier on the answers labelled by reading, and measure it.

    python benchmarks/fit_outcomes.py

Prompts decide the split, so that no prompt is on both sides: a fifth of them is held out and never
fitted on; the strength of regularisation is chosen by cross-validation over the others. Answers of
models that were made to refuse (`refusals.jsonl`) are learned from as well, those to held-out
prompts left out, so that what is held out are answers of the models that are measured. Answers on
which three readers differed have no outcome: they are counted and left out. Writes
`data/outcomes/` and prints what was measured as JSON.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold

from cai_lite.answers import HARMLESS, OUTCOMES
from cai_lite.engine.models import load_base
from cai_lite.engine.outcomes import fit, likeliest, reading, save_classifier
from cai_lite.measures import share_interval
from cai_lite.presets import get_preset
from cai_lite.records import LabelledAnswer, Rows
from cai_lite.run import derive_seed

ROOT = Path(__file__).resolve().parent.parent
LABELLED = ROOT / "tests" / "data" / "outcomes"
STRENGTHS = (0.1, 0.3, 1.0)


def held_out(row: LabelledAnswer) -> bool:
    """Whether the row's prompt is in the fifth that is never fitted on."""
    return derive_seed(0, "held out", row.prompt_id) % 5 == 0


def learned_from() -> tuple[list[LabelledAnswer], int]:
    """All answers with an outcome that are fitted on or held out, and how many have none."""
    answers = Rows(LABELLED / "answers.jsonl", LabelledAnswer).read()
    refusing = Rows(LABELLED / "refusals.jsonl", LabelledAnswer).read()
    every = answers + [row for row in refusing if not held_out(row)]
    rows = [row for row in every if row.outcome]
    return rows, len(every) - len(rows)


def cross_validated(base, features, rows, strength) -> list[str]:
    """Each row's outcome by a classifier that saw none of its prompt's rows."""
    found = np.empty(len(rows), dtype=object)
    groups = [row.prompt_id for row in rows]
    for train, test in GroupKFold(5, shuffle=True, random_state=0).split(features, groups=groups):
        fitted = fit(base, features[train], [rows[i] for i in train], strength)
        texts = [rows[i].response for i in test]
        found[test] = likeliest(fitted.from_features(features[test], texts))
    return list(found)


def scores(rows, found) -> dict:
    """Accuracy with its interval, on all and where the first two readers agreed, and by outcome.

    `harmless` is the question that harmlessness asks, of two answers: is it right, how often do
    two readers agree in it, and how large is the share, said and true.
    """
    truth, found = np.array([row.outcome for row in rows]), np.array(found)
    right = truth == found
    first, second = (np.array([row.readings[k] for row in rows]) for k in (0, 1))
    agreed = first == second
    said, true, one, two = (np.isin(each, HARMLESS) for each in (found, truth, first, second))
    return {
        "n": len(rows),
        "accuracy": round(float(right.mean()), 4),
        "accuracy_ci": share_interval(right),
        "n_agreed": int(agreed.sum()),
        "accuracy_agreed": round(float(right[agreed].mean()), 4),
        "accuracy_agreed_ci": share_interval(right[agreed]),
        "recall": {o: round(float(right[truth == o].mean()), 4) for o in OUTCOMES if o in truth},
        "precision": {o: round(float(right[found == o].mean()), 4) for o in OUTCOMES if o in found},
        "counts": dict(Counter(truth.tolist())),
        "harmless": {
            "accuracy": round(float((said == true).mean()), 4),
            "accuracy_ci": share_interval(said == true),
            "accuracy_agreed": round(float((said == true)[agreed].mean()), 4),
            "readers_agree": round(float((one == two).mean()), 4),
            "share_said": round(float(said.mean()), 4),
            "share_true": round(float(true.mean()), 4),
        },
        "readers_agree": round(float(agreed.mean()), 4),
    }


def measure(base, features, rows):
    """Choose by cross-validation, fit on four fifths, measure on the fifth.

    `features` are of `rows`, all of which have an outcome.
    """
    out = np.array([held_out(row) for row in rows])
    train, rest = ([row for row, o in zip(rows, out, strict=True) if o == k] for k in (False, True))
    tried = {s: scores(train, cross_validated(base, features[~out], train, s)) for s in STRENGTHS}
    best = max(tried, key=lambda s: tried[s]["accuracy"])
    fitted = fit(base, features[~out], train, best)
    found = likeliest(fitted.from_features(features[out], [row.response for row in rest]))
    fitted.accuracy.update(
        held_out=scores(rest, found),
        cross_validated=tried[best],
        strength=best,
        tried={str(s): numbers["accuracy"] for s, numbers in tried.items()},
    )
    return fitted


def main() -> None:
    """Read, split, choose, fit, measure, write."""
    rows, undecided = learned_from()
    base = load_base(get_preset("ci"))
    features = reading(base, [r.prompt for r in rows], [r.response for r in rows])
    fitted = measure(base, features, rows)
    fitted.accuracy.update(labelled=len(rows) + undecided, undecided=undecided)
    save_classifier(fitted, ROOT / "data" / "outcomes")
    print(json.dumps(fitted.accuracy, indent=2))


if __name__ == "__main__":
    main()
