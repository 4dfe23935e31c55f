"""Does the reward know where an objection is wanted? A preference model on prompts it has not seen.

    python benchmarks/wanted_objections.py RUN [RUN …]

RUN has a preference model; all are of one SL-CAI. For training prompts that none of their
comparisons was made on, red-team ones, harmless ones that sound harmful and plain ones, forty of
each or as many as there are: how often SL-CAI's objection, its opening forced, is scored above the
start's own answer, with Wilson's interval, and by how much on average. A reward that knows has
high, low, low; what it has on the second is what over-refusal comes from. The last line on stdout
is JSON.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cai_lite.engine.models import Base, add_adapter, load_base
from cai_lite.engine.pairs import comparisons, split, unjudged
from cai_lite.engine.reward import load_preference_model
from cai_lite.measures import share_interval
from cai_lite.records import HelpfulAnswer, Revision, Rows
from cai_lite.run import Run, open_run
from cai_lite.stages.ai_feedback import objections_to

_MOST = 40  # prompts of a kind
Kinds = dict[str, list[HelpfulAnswer]]


def compared(run: Run) -> set[str]:
    """The prompts of every comparison of this run, judged or made."""
    judged = comparisons(run)
    made = unjudged(run, len(split(run, judged)[0]))
    return {row.prompt for rows in (judged, *made.values()) for row in rows}


def unseen(runs: Sequence[Run]) -> Kinds:
    """The start's answers to training prompts that no run has a comparison on, by kind."""
    run, seen = runs[0], {prompt for one in runs for prompt in compared(one)}
    found: Kinds = {"red team": [], "sounds harmful": [], "plain": []}
    for row in Rows(run.path("critique_revision", "rows.jsonl"), Revision).read():
        if row.round == 0:
            answer = HelpfulAnswer(id=row.prompt_id, prompt=row.prompt, response=row.response)
            found["red team"].append(answer)
    tempting = {p.id for p in run.prompts("helpful", "train") if p.sounds_harmful}
    for helpful in Rows(run.path("sl_cai", "answers.jsonl"), HelpfulAnswer).read():
        if not helpful.dropped:
            found["sounds harmful" if helpful.id in tempting else "plain"].append(helpful)
    return {k: [row for row in v if row.prompt not in seen][-_MOST:] for k, v in found.items()}


def margins(run: Run, base: Base, kinds: Kinds, objections: dict[str, str]) -> dict[str, object]:
    """By kind: [share, low, high] of objections above the answer, and the mean difference."""
    model = load_preference_model(base, run.path("preference_model", "adapter"))
    found: dict[str, object] = {}
    for kind, rows in kinds.items():
        prompts = [row.prompt for row in rows]
        objects = model.scores(prompts, [objections[row.id] for row in rows])
        lead = (objects - model.scores(prompts, [row.response for row in rows])).numpy()
        share = [round(float(np.mean(lead > 0)), 3), *share_interval((lead > 0).astype(float))]
        found[kind] = {"n": len(rows), "above": share, "by": round(float(lead.mean()), 2)}
    return found


def main(*folders: str) -> None:
    """Let SL-CAI object once, then have every run's preference model compare."""
    runs = [open_run(Path(folder)) for folder in folders]
    kinds, base = unseen(runs), load_base(runs[0].preset)
    add_adapter(base, runs[0].path("sl_cai", "adapter"), "sl_cai")
    objections = objections_to(runs[0], base, [row for rows in kinds.values() for row in rows])
    if not objections:
        raise SystemExit(f"{folders[0]}'s constitution has no revision_openings to object with")
    found = {
        run.folder.name: margins(run, load_base(run.preset), kinds, objections) for run in runs
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
