"""Does relevance see what readers call broken, and the outcome classifier lets pass?

    python benchmarks/relevance.py

Relevance: how many nats likelier the embedded model finds an answer behind its prompt than behind
"Hello!". Nothing is fitted and no label read to make it. Measured on answers labelled by reading:
the sample's to red-team prompts (tests/data/sample) and others to borderline prompts
(tests/data/borderline). An AUC is the share of pairs, one broken and one other, in which the broken
one is less relevant; objections are what declines or refuses. Intervals by a bootstrap over
answers. The last line on stdout is JSON.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from cai_lite.answers import OBJECTS
from cai_lite.engine.models import load_base
from cai_lite.engine.scoring import relevance
from cai_lite.presets import get_preset
from cai_lite.records import LabelledAnswer, Rows

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
SETS = {
    "sample": DATA / "sample" / "answers.jsonl",
    "borderline": DATA / "borderline" / "borderline.jsonl",
}
_TIMES = 2000


def auc(nats: np.ndarray, broken: np.ndarray) -> list[float]:
    """[AUC, low, high] of broken answers, (rows,), having less relevance than the others."""
    rng, places = np.random.default_rng(0), np.arange(len(nats))
    again = [rng.choice(places, len(places)) for _ in range(_TIMES)]
    found = [roc_auc_score(~broken[i], nats[i]) for i in again if 0 < broken[i].sum() < len(i)]
    whole = roc_auc_score(~broken, nats)
    return [round(float(x), 3) for x in (whole, *np.quantile(found, (0.025, 0.975)))]


def measured(nats: np.ndarray, outcomes: np.ndarray) -> dict[str, object]:
    """AUCs of broken against all others and against objections, and the median of each outcome."""
    broken, objects = outcomes == "broken", np.isin(outcomes, OBJECTS)
    alike = broken | objects
    medians = {o: round(float(np.median(nats[outcomes == o])), 1) for o in np.unique(outcomes)}
    return {
        "n": len(nats),
        "broken": int(broken.sum()),
        "against the others": auc(nats, broken),
        "against objections": auc(nats[alike], broken[alike]),
        "median nats": medians,
    }


def main() -> None:
    """Read, compare, print."""
    base = load_base(get_preset("ci"))
    found = {}
    for name, path in SETS.items():
        rows = Rows(path, LabelledAnswer).read()
        nats = relevance(base, [r.prompt for r in rows], [r.response for r in rows], 32)
        found[name] = measured(nats, np.array([row.outcome for row in rows]))
        print(name, json.dumps(found[name]), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
