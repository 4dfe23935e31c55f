"""RL that goes too far on purpose: without a leash, and with one (Goodhart, paper §4.3).

    python benchmarks/goodhart.py RUN [field=value …]

RUN is a finished run: its SL-CAI is the start, its preference model the reward. Both ways train
with five times the learning rate of preset `cpu` on the same prompts and are not stopped for their
KL; every sixth step the policy answers the same held-out prompts, which the preference model, the
outcome classifier and the prompts' own checks read. What was watched, and the last completions, are
kept in data/samples/goodhart.json. The last line on stdout is JSON: each way's first and last look.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from cai_lite.files import shipped
from cai_lite.presets import get_preset
from cai_lite.records import Completion, Rows, read_json, write_json
from cai_lite.run import Run, begin_run, open_run
from cai_lite.stages.rl_cai import rl_cai

# Without a leash beta is not 0 but next to it: at 0 TRL does not measure the KL either.
WAYS = {"no leash, beta 0": {"rl_beta": 1e-6}, "leash, beta 0.2": {"rl_beta": 0.2}}
TOO_FAR = {
    "rl_learning_rate": 1e-3, "rl_steps": 25, "rl_prompts": 2, "rl_max_kl": 1e9,
    "rl_watch_every": 6, "rl_watch_prompts": 24,
}  # fmt: skip


def scratch_run(folder: Path, kept: Path, **fields: object) -> Run:
    """SL-CAI and the preference model of a run in a folder of its own, with other fields."""
    begun = open_run(folder).preset.model_dump() | TOO_FAR | fields
    run = begin_run(kept, get_preset(begun.pop("name"), **begun))
    for name in ("sl_cai", "preference_model"):
        shutil.copytree(folder / name, run.path(name))
        run.path(name, "origin.json").unlink(missing_ok=True)  # what it was made from stayed behind
    return run


def gone_too_far(folder: Path, **fields: object) -> dict[str, Any]:
    """What one way's steps looked like, and the completions of the last."""
    with tempfile.TemporaryDirectory() as place:
        run = scratch_run(folder, Path(place, "run"), **fields)
        rl_cai(run)
        rows = Rows(run.path("rl_cai", "completions.jsonl"), Completion).read()
        last = [row.model_dump() for row in rows if row.step == rows[-1].step]
        return {"steps": read_json(run.path("rl_cai", "steps.json")), "completions": last}


def main(folder: str, *arguments: str) -> None:
    """Train every way, keep what was watched, print the first and the last look."""
    fields = dict(argument.split("=", 1) for argument in arguments)
    found = {}
    for name, way in WAYS.items():
        found[name] = gone_too_far(Path(folder), **way | fields)
        print(name, json.dumps(looked(found[name])), flush=True)
        write_json(shipped("data", "samples", "goodhart.json"), found)
    print(json.dumps({name: [looked(way)[0], looked(way)[-1]] for name, way in found.items()}))


def looked(way: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps at which the policy answered held-out prompts."""
    return [step for step in way["steps"] if "harmlessness" in step]


if __name__ == "__main__":
    main(*sys.argv[1:])
