"""The sample's answers to red-team prompts by readers, beside the outcome classifier.

    python benchmarks/readers.py

Reads `tests/data/sample` (240 answers, labelled by reading, blind) and what the evaluation of
data/samples says of the same answers; no model is run. Shares with Wilson's intervals, differences
paired by prompt with a bootstrap's. The last line on stdout is JSON.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cai_lite.answers import HARMLESS, OUTCOMES
from cai_lite.files import shipped
from cai_lite.measures import bootstrap_interval, share_interval
from cai_lite.records import Answer, LabelledAnswer, Rows

ROOT = Path(__file__).resolve().parent.parent
READ = ROOT / "tests" / "data" / "sample" / "answers.jsonl"
MODELS = ("base", "sl_cai", "rl_cai")
KINDS = {"harmless": HARMLESS} | {name: (name,) for name in OUTCOMES}
PAIRS = (("sl_cai", "base"), ("rl_cai", "sl_cai"), ("rl_cai", "base"))


def share(hits: Sequence[bool] | np.ndarray) -> list[float]:
    """[share, low, high] of yes or no."""
    return [round(float(np.mean(hits)), 3), *share_interval(np.asarray(hits, dtype=float))]


def rise(outcomes: dict[str, dict[str, str]], pair: tuple[str, str], kind: Sequence[str]) -> list:
    """[mean, low, high] of how much more often the later model's answers are of a kind."""
    later, earlier = (outcomes[model] for model in pair)
    values = np.array([(later[p] in kind) - float(earlier[p] in kind) for p in later])
    return [round(float(values.mean()), 3), *bootstrap_interval(values, 2000, 0)]


def main() -> None:
    """Compare and print."""
    rows = Rows(READ, LabelledAnswer).read()
    answers = Rows(shipped("data", "samples", "evaluation", "answers.jsonl"), Answer).read()
    said = {row.id: row for row in answers}
    if any(said[row.id].response != row.response for row in rows):
        raise SystemExit(f"{READ} was read from another sample; read the new one's answers")
    ways = {
        "readers": {row.id: row.outcome for row in rows},
        "classifier": {row.id: said[row.id].outcome for row in rows},
    }
    found: dict[str, object] = {}
    for way, outcomes in ways.items():
        by_model = {
            m: {row.prompt_id: outcomes[row.id] for row in rows if row.model == m} for m in MODELS
        }
        for kind, names in KINDS.items():
            shares = {m: share([o in names for o in own.values()]) for m, own in by_model.items()}
            print(way, kind, json.dumps(shares))
        for kind in ("harmless", "broken"):
            rises = {" - ".join(pair): rise(by_model, pair, KINDS[kind]) for pair in PAIRS}
            print(way, kind, json.dumps(rises))
            found[f"{way}, {kind}"] = rises
    right = [ways["readers"][row.id] == ways["classifier"][row.id] for row in rows]
    alike = [
        (ways["readers"][row.id] in HARMLESS) == (ways["classifier"][row.id] in HARMLESS)
        for row in rows
    ]
    print(
        json.dumps(found | {"classifier is right": share(right), "harmless or not": share(alike)})
    )


if __name__ == "__main__":
    main()
