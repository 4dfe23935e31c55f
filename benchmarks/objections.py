"""Does the reward know an objection from help? Preference model and labeller on a run's answers.

    python benchmarks/objections.py RUN [READINGS]

RUN is a finished run. Of its start's and SL-CAI's answers to the red-team prompts of the
evaluation, none of which was learned from: how often an answer that objects stands in front of one
that helps with the harm, and a harmless one in front of a broken one (0.5 is chance), by the
outcome classifier, or by READINGS, a file of tests/data/sample that has these very answers, where
its readers agree. And of the labelled pairs, how many hold just one objection. The last line on
stdout is JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from cai_lite.answers import HARMLESS, OBJECTS
from cai_lite.engine.contrast import answer_states
from cai_lite.engine.models import Base, load_base
from cai_lite.engine.outcomes import load_classifier
from cai_lite.engine.reader import load_reader
from cai_lite.engine.reward import load_preference_model
from cai_lite.records import Answer, Comparison, LabelledAnswer, Rows
from cai_lite.run import Run, open_run

KINDS = {
    "objects, over helps": (OBJECTS, ("helps",)),
    "harmless, over broken": (HARMLESS, ("broken",)),
}


def in_front(scores: np.ndarray, better: np.ndarray, worse: np.ndarray) -> float:
    """Share of all pairs of one better and one worse answer in which the better scores higher."""
    either = better | worse
    return round(float(roc_auc_score(better[either], scores[either])), 3)


def scored(run: Run, base: Base, rows: list[Answer]) -> dict[str, np.ndarray]:
    """What labeller and preference model think of each answer, (answers,)."""
    prompts, answers = [row.prompt for row in rows], [row.response for row in rows]
    reader = load_reader(run.path("ai_feedback", "reader.safetensors"))
    states = answer_states(base, prompts, answers, reader.layers, run.preset.batch_size)
    labeller = reader.logits(states).mean(1)
    model = load_preference_model(base, run.path("preference_model", "adapter"))
    return {"labeller": labeller, "preference model": model.scores(prompts, answers).numpy()}


def one_objects(run: Run, base: Base) -> dict[str, float]:
    """The labelled pairs, those of which one answer objects, and the mean label of that one."""
    pairs = Rows(run.path("ai_feedback", "comparisons.jsonl"), Comparison).read()
    classifier, prompts = load_classifier(base), [pair.prompt for pair in pairs]
    sides = [classifier.outcomes(prompts, [getattr(p, side) for p in pairs]) for side in "ab"]
    a, b = (np.isin(side, OBJECTS) for side in sides)
    p_a = np.array([pair.p_a for pair in pairs])
    labels = np.where(a, p_a, 1 - p_a)[a != b]
    return {"pairs": len(pairs), "one objects": len(labels), "its label": round(labels.mean(), 3)}


def outcomes(rows: list[Answer], readings: str) -> np.ndarray:
    """What the classifier says of each answer, or what readers said; "" where they differ."""
    if not readings:
        return np.array([row.outcome for row in rows])
    read = {(r.id, r.response): r.outcome for r in Rows(Path(readings), LabelledAnswer).read()}
    if any((row.id, row.response) not in read for row in rows):
        raise SystemExit(f"{readings} has other answers than this run's; expected readings of it")
    return np.array([read[row.id, row.response] for row in rows])


def main(folder: str, readings: str = "") -> None:
    """Score, count, print."""
    run = open_run(Path(folder))
    base = load_base(run.preset)
    every = Rows(run.path("evaluation", "answers.jsonl"), Answer).read()
    rows = [r for r in every if r.prompt_set == "red_team" and r.model in ("base", "sl_cai")]
    said = outcomes(rows, readings)
    found = {
        f"{kind}: {who}": in_front(scores, np.isin(said, better), np.isin(said, worse))
        for who, scores in scored(run, base, rows).items()
        for kind, (better, worse) in KINDS.items()
    }
    print(json.dumps(found | one_objects(run, base)))


if __name__ == "__main__":
    main(*sys.argv[1:])
