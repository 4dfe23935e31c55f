"""RL that goes too far on purpose, and what the paper holds against it (Goodhart, paper §4.3).

    python benchmarks/goodhart.py RUN [WAY …] [field=value …]

RUN is a finished run: its SL-CAI is the start. No way is stopped for its KL. Four train with a
learning rate of 1e-3 on the same prompts. Three of these have no leash: by RUN's preference model,
of soft labels by its principles; by one of the same labels made hard; by one of the same pairs
labelled by the constitution of one principle. The fourth has a leash. The fifth way is the preset's
own, rate and leash, only long: 64 steps. Every few steps the policy answers the same held-out
prompts, which the preference model, the outcome classifier and the prompts' own checks read. What
was watched, and the last completions, are kept in data/samples/goodhart.json; with a WAY, that one
alone is trained and the others stay. The last line on stdout is JSON: each way's first and last
look.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preference import with_labels

from cai_lite.files import shipped
from cai_lite.presets import get_preset
from cai_lite.records import Comparison, Completion, Rows, read_json, write_json
from cai_lite.run import Run, begin_run, open_run
from cai_lite.stages.ai_feedback import ai_feedback
from cai_lite.stages.preference_model import preference_model
from cai_lite.stages.rl_cai import rl_cai

TOO_FAR = {"rl_prompts": 2, "rl_max_kl": 1e9}
STEEP = {
    "rl_learning_rate": 1e-3, "rl_steps": 25, "rl_watch_every": 6, "rl_watch_prompts": 48
}  # fmt: skip
LONG = {"rl_steps": 64, "rl_watch_every": 12, "rl_watch_prompts": 32}  # rate and leash are RUN's
# Without a leash beta is not 0 but next to it: at 0 TRL does not measure the KL either.
FREE = STEEP | {"rl_beta": 1e-6}


def as_it_is(folder: Path, kept: Path, **fields: object) -> Run:
    """A run of its own with the other's stages up to the preference model, and other fields."""
    return begun(folder, kept, ("sl_cai", "preference_model"), **fields)


def with_hard_labels(folder: Path, kept: Path, **fields: object) -> Run:
    """The same, but its preference model learns only which answer the labels prefer."""
    labels = kept.with_name("hard.jsonl")
    rows = Rows(folder / "ai_feedback" / "comparisons.jsonl", Comparison).read()
    Rows(labels, Comparison).append(with_labels(rows, "hard"))
    stages = ("critique_revision", "sl_cai", "ai_feedback")
    run = begun(folder, kept, stages, pm_labels=str(labels), **fields)
    preference_model(run)
    return run


def with_one_principle(folder: Path, kept: Path, **fields: object) -> Run:
    """The same, but it learns from the same pairs of answers, labelled by a single principle."""
    stages = ("critique_revision", "sl_cai", "ai_feedback")
    run = begun(folder, kept, stages, constitution="one-principle", **fields)
    for name in ("comparisons.jsonl", "reader.safetensors"):
        run.path("ai_feedback", name).unlink()
    ai_feedback(run)
    preference_model(run)
    return run


def begun(folder: Path, kept: Path, stages: Sequence[str], **fields: object) -> Run:
    """A run of its own with some of the other's stages, and other fields."""
    preset = open_run(folder).preset.model_dump() | TOO_FAR | fields
    run = begin_run(kept, get_preset(preset.pop("name"), **preset))
    for name in stages:
        shutil.copytree(folder / name, run.path(name))
        run.path(name, "origin.json").unlink(missing_ok=True)  # what it was made from stayed behind
    return run


WAYS: dict[str, tuple[Callable[..., Run], dict[str, float]]] = {
    "no leash, beta 0": (as_it_is, FREE),
    "leash, beta 0.2": (as_it_is, STEEP | {"rl_beta": 0.2}),
    "hard labels, beta 0": (with_hard_labels, FREE),
    "one principle, beta 0": (with_one_principle, FREE),
    "the preset's, long": (as_it_is, LONG),
}


def gone_too_far(folder: Path, begin: Callable[..., Run], fields: dict[str, Any]) -> dict[str, Any]:
    """What one way's steps looked like, and the completions of the last."""
    with tempfile.TemporaryDirectory() as place:
        run = begin(folder, Path(place, "run"), **fields)
        rl_cai(run)
        rows = Rows(run.path("rl_cai", "completions.jsonl"), Completion).read()
        last = [row.model_dump() for row in rows if row.step == rows[-1].step]
        return {"steps": read_json(run.path("rl_cai", "steps.json")), "completions": last}


def main(folder: str, *arguments: str) -> None:
    """Train every way, or those named, keep what was watched, print the first and the last look."""
    fields = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    named = [argument for argument in arguments if "=" not in argument] or list(WAYS)
    if unknown := set(named) - set(WAYS):
        raise SystemExit(f"no way is called {min(unknown)!r}; expected one of {', '.join(WAYS)}")
    place = shipped("data", "samples", "goodhart.json")
    found = read_json(place) if place.exists() else {}
    for name in named:
        begin, way = WAYS[name]
        found[name] = gone_too_far(Path(folder), begin, way | fields)
        print(name, json.dumps(looked(found[name])), flush=True)
        write_json(place, found)
    print(json.dumps({name: [looked(way)[0], looked(way)[-1]] for name, way in found.items()}))


def looked(way: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps at which the policy answered held-out prompts."""
    return [step for step in way["steps"] if "harmlessness" in step]


if __name__ == "__main__":
    main(*sys.argv[1:])
