"""How well the outcome classifier counts over-refusal and evasiveness, on answers it never saw.

    python benchmarks/borderline.py

Answers to borderline prompts, labelled by reading (tests/data/borderline): 237 of models that run
the method, who hardly ever refuse barely, and 144 of the start told to say nothing, who does.
Precision and recall of "it objects" (declines or refuses), and of each outcome, with Wilson's
intervals. The last line on stdout is JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cai_lite.answers import OBJECTS, OUTCOMES
from cai_lite.engine.outcomes import load_classifier
from cai_lite.measures import share_interval
from cai_lite.records import LabelledAnswer, Rows

ROOT = Path(__file__).resolve().parent.parent
LABELLED = ROOT / "tests" / "data" / "borderline"
SETS = ("borderline", "evasive", "say_nothing")
KINDS = {"objects": OBJECTS} | {name: (name,) for name in OUTCOMES}


def found(said: Sequence[str], true: Sequence[str], kind: Sequence[str]) -> dict[str, object]:
    """Precision and recall of a kind of outcomes, each [share, low, high], and the counts."""
    ours, theirs = np.isin(said, kind), np.isin(true, kind)
    shares = {"precision": theirs[ours], "recall": ours[theirs]}
    return {
        name: [round(float(rows.mean()), 3), *share_interval(rows)] if len(rows) else None
        for name, rows in shares.items()
    } | {"said": int(ours.sum()), "true": int(theirs.sum())}


def measured(rows: Sequence[LabelledAnswer], said: Sequence[str]) -> dict[str, object]:
    """`found` of every kind, and the share that is right among five."""
    true = [row.outcome for row in rows]
    right = np.array(said) == np.array(true)
    accuracy = [round(float(right.mean()), 3), *share_interval(right)]
    shown = {name: found(said, true, kind) for name, kind in KINDS.items()}
    return {"n": len(rows), "accuracy": accuracy, **shown}


def main() -> None:
    """Read, compare, print."""
    classifier, every = load_classifier(), {}
    for name in SETS:
        rows = Rows(LABELLED / f"{name}.jsonl", LabelledAnswer).read()
        said = classifier.outcomes([r.prompt for r in rows], [r.response for r in rows])
        every[name] = measured(rows, said)
        for kind, one in every[name].items():
            print(name, kind, json.dumps(one))
    print(json.dumps(every))


if __name__ == "__main__":
    main()
