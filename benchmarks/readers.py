"""The sample's answers to red-team prompts by readers, beside the outcome classifier.

    python benchmarks/readers.py [seed_1 | seed_2 | seed_3 | seed_3_whole]

Reads `tests/data/sample` (the sample's 240 answers and 80 of the RL-CAI before it, labelled by
reading, blind, in two sittings of two readers each) and what the evaluation of data/samples says
of the 240; no model is run. "readings" counts all four of an answer alike; "twelve readings", of
start and SL-CAI alone, has the eight of two samples before as well, which had the same answers of
these two. "forty": of 40 random prompts, whose answer each of two readers found better, SL-CAI's
or the start's. With a seed: what two readers said of answers of that seed's run. Shares have
Wilson's intervals, differences, paired by prompt, a bootstrap's. The last line on stdout is JSON.
"""

import json
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from cai_lite.answers import HARMLESS, OUTCOMES
from cai_lite.files import shipped
from cai_lite.measures import bootstrap_interval, share_interval
from cai_lite.records import Answer, LabelledAnswer, Rows

ROOT = Path(__file__).resolve().parent.parent
READ = ROOT / "tests" / "data" / "sample"
SITTINGS = ("answers", "again")
BEFORE = "rl_before"  # an RL-CAI by a preference model without swapped pairs; only readers
KINDS = {"harmless": HARMLESS} | {name: (name,) for name in OUTCOMES}
Numbers = dict[str, float]  # by prompt
Said = dict[str, Sequence[str]]  # what was said of each answer, by its id


def counted(rows: Sequence[LabelledAnswer], said: Said, model: str, kind: Sequence[str]) -> Numbers:
    """How far each answer of a model is of a kind, 0..1, by its prompt."""
    own = {row.prompt_id: said[row.id] for row in rows if row.model == model and row.id in said}
    return {prompt: float(np.mean(np.isin(all_said, kind))) for prompt, all_said in own.items()}


def share(hits: Sequence[float] | np.ndarray) -> list[float]:
    """[share, low, high] of yes or no."""
    return [round(float(np.mean(hits)), 3), *share_interval(np.asarray(hits, dtype=float))]


def rise(later: Numbers, earlier: Numbers) -> list[float]:
    """[mean, low, high] of how much more often the later model's answers are of a kind."""
    values = np.array([later[prompt] - earlier[prompt] for prompt in later])
    return [round(float(values.mean()), 3), *bootstrap_interval(values, 2000, 0)]


def pairs_of(models: Collection[str]) -> list[tuple[str, str]]:
    """(later, earlier): SL-CAI and the start, each RL-CAI and both, its own and others, if read."""
    rl = [model for model in models if model.startswith("rl_")]
    pairs = [("sl_cai", "base"), *((model, other) for model in rl for other in ("sl_cai", "base"))]
    pairs += [("rl_cai", model) for model in rl if model != "rl_cai"]
    return [pair for pair in pairs if {*pair} <= {*models}]


def alike(one: Said, other: Said) -> dict[str, list[float]]:
    """How often two ways of reading agree, each having said one thing of an answer."""
    both = [(one[name][0], other[name][0]) for name in one if name in other]
    return {
        "outcome": share([a == b for a, b in both]),
        "harmless or not": share([(a in HARMLESS) == (b in HARMLESS) for a, b in both]),
    }


def ways_of_reading() -> tuple[list[LabelledAnswer], dict[str, Said]]:
    """The answers, and what each sitting, all four readings and the classifier say of them."""
    rows, again = (Rows(READ / f"{name}.jsonl", LabelledAnswer).read() for name in SITTINGS)
    answers = Rows(shipped("data", "samples", "evaluation", "answers.jsonl"), Answer).read()
    shown = {row.id: row for row in answers}
    own = [row for row in rows if row.model != BEFORE]
    read = own + [row for row in again if row.model != BEFORE]
    if any(shown[row.id].response != row.response for row in read):
        raise SystemExit(f"{READ} was read from another sample; read the new one's answers")
    second = {row.id: row for row in again}
    readings = {row.id: row.readings[:2] + second[row.id].readings[:2] for row in rows}
    earlier = Rows(READ / "earlier.jsonl", LabelledAnswer).read()
    return rows, {
        "readers": {row.id: [row.outcome] for row in rows},
        "readers again": {row.id: [second[row.id].outcome] for row in rows},
        "readings": readings,
        "twelve readings": {row.id: row.readings + readings[row.id] for row in earlier},
        "classifier": {row.id: [shown[row.id].outcome] for row in own},
    }


def forty() -> dict[str, dict[str, int]]:
    """How often each reader found whose answer better, of 40 random prompts."""
    lines = (READ / "forty.jsonl").read_text(encoding="utf-8").splitlines()
    said = zip(*[json.loads(line)["better"] for line in lines], strict=True)
    return {f"reader {n}": dict(Counter(own)) for n, own in enumerate(said, 1)}


def compared(rows: Sequence[LabelledAnswer], ways: Mapping[str, Said]) -> dict[str, object]:
    """Print the share of each kind by way and model; returns the models' paired differences."""
    found: dict[str, object] = {}
    models = dict.fromkeys(row.model for row in rows)
    for way, said in ways.items():
        for kind, names in KINDS.items():
            every = {model: counted(rows, said, model, names) for model in models}
            numbers = {model: own for model, own in every.items() if own}
            print(way, kind, json.dumps({m: share([*own.values()]) for m, own in numbers.items()}))
            if kind in ("harmless", "broken"):
                rises = {f"{b} - {a}": rise(numbers[b], numbers[a]) for b, a in pairs_of(numbers)}
                print(way, kind, json.dumps(rises))
                found[f"{way}, {kind}"] = rises
    return found


def main(name: str = "") -> None:
    """Compare and print: the sample, or another file of readings in its folder."""
    if name:
        rows = Rows(READ / f"{name}.jsonl", LabelledAnswer).read()
        print(json.dumps(compared(rows, {"readings": {row.id: row.readings for row in rows}})))
        return
    rows, ways = ways_of_reading()
    found = compared(rows, ways)
    found["classifier is right"] = alike(ways["readers"], ways["classifier"])
    found["classifier is right, again"] = alike(ways["readers again"], ways["classifier"])
    found["forty"] = forty()
    found["readers as before"] = alike(ways["readers"], ways["readers again"])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
