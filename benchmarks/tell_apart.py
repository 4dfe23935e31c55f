"""Whether two constitutions, from the same start, give models that can be told apart.

    python benchmarks/tell_apart.py RUN_A RUN_B

Both runs have a finished SL-CAI from the same weights. Both models answer RUN_A's red-team prompts
for evaluation, with its temperature, tokens and seeds. The labeller is the untouched base. It takes
each answer alone, without a word on whose it is, and says for every prompt which of the two follows
RUN_B's constitution: *read*, by a reader of hidden states that learned from RUN_B's contrast pairs
and from nothing else, and *asked*, by each principle's question. The outcome classifier says what
each answer does. Answers, outcomes and leads are kept in data/samples/tell_apart.json beside those
of other pairs of runs, for notebook 07. The last line on stdout is JSON: the share told apart by
all principles and by each alone, and each model's outcomes.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cai_lite.engine.answering import sampled
from cai_lite.engine.models import Base, add_adapter, load_base, role
from cai_lite.engine.outcomes import load_classifier
from cai_lite.files import shipped
from cai_lite.records import read_json, write_json
from cai_lite.run import Run, open_run
from cai_lite.stages.constitutions import asked_leads, own_reader, read_leads, told_apart

KEPT = shipped("data", "samples", "tell_apart.json")
ADAPTERS, WAYS = ("first", "second"), ("read", "asked")


def title(run: Run) -> str:
    """What a run's SL-CAI is called here."""
    return f"{run.constitution.name} ({run.preset.name}, seed {run.preset.seed})"


def both_models(runs: list[Run]) -> Base:
    """The start that both runs have in common, with both adapters."""
    base = load_base(runs[0].preset)
    for run, adapter in zip(runs, ADAPTERS, strict=True):
        run.require("sl_cai")
        run.note_model(base.sha256)  # or it is not the same start
        add_adapter(base, run.path("sl_cai", "adapter"), adapter)
    return base


def answered(runs: list[Run], base: Base) -> dict[str, Any]:
    """Prompts, and both models' answers to them with their outcomes, column by column."""
    reader = load_classifier(base)
    prompts = runs[0].prompts("red_team", "eval", runs[0].preset.eval_red_team)
    asked = [prompt.prompt for prompt in prompts]
    found: dict[str, Any] = {"ids": [prompt.id for prompt in prompts], "prompts": asked}
    for name, adapter in zip("ab", ADAPTERS, strict=True):
        with role(base, adapter):
            found[name] = sampled(runs[0], base, prompts, 0)
        found[f"outcomes_{name}"] = reader.outcomes(asked, found[name])
    return found


def told(run: Run, base: Base, texts: dict[str, Any]) -> dict[str, Any]:
    """How often each way says right which answer is the second model's, and by how much."""
    said = texts["prompts"], texts["a"], texts["b"]
    reader, size = own_reader(run, base), run.preset.batch_size
    names = [principle.id for principle in run.constitution.comparison]
    ways = {
        "read": (reader.principles, read_leads(base, reader, *said, size)),
        "asked": (names, asked_leads(base, run.constitution, *said, size)),
    }
    return {
        way: told_apart(leads, ids) | {"leads": np.round(leads.mean(1), 4).tolist()}
        for way, (ids, leads) in ways.items()
    }


def show(pair: str, found: dict[str, Any]) -> None:
    """A table, then the last line."""
    for way in WAYS:
        print(f"{pair}: {way}, n = {found[way]['n']}")
        for name, share in {"all principles": found[way], **found[way]["principles"]}.items():
            low, high = share["ci"]
            print(f"  {name:16s} {share['right']:.2f} [{low:.2f}, {high:.2f}]")
    outcomes = [dict(Counter(found["texts"][f"outcomes_{name}"])) for name in "ab"]
    shares = {way: {k: v for k, v in found[way].items() if k != "leads"} for way in WAYS}
    print(json.dumps({"pair": pair, "outcomes": outcomes} | shares))


def main(one: str, other: str) -> None:
    """Answer, tell apart, keep and show what was found."""
    runs = [open_run(Path(folder)) for folder in (one, other)]
    pair = " and ".join(map(title, runs))
    base = both_models(runs)
    texts = answered(runs, base)
    found = {"models": [title(run) for run in runs], "texts": texts, **told(runs[1], base, texts)}
    write_json(KEPT, (read_json(KEPT) if KEPT.exists() else {}) | {pair: found})
    show(pair, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
