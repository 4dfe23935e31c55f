"""How far each labeller agrees with readers, on pairs of the models' own answers.

    python benchmarks/labellers.py RUN [pairs]

RUN is a finished run of the embedded model: its revisions and contrast pairs teach the contrast
reader. The pairs, and how language models read them, are in tests/data/pairs; none of them was
used to make a labeller. Every label is kept in data/samples/labels.jsonl, which notebook 03 shows.
Of the 200, those that readers decided are labelled. The last line on stdout is JSON.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cai_lite.engine.models import load_base
from cai_lite.files import shipped
from cai_lite.measures import brier, calibration_error, share_interval
from cai_lite.records import Comparison, Pair, write_text
from cai_lite.run import Run, open_run
from cai_lite.stages.ai_feedback import LABELLERS, principles_for

ROOT = Path(__file__).parents[1]


def read_pairs() -> list[Comparison]:
    """The pairs that readers decided, with their verdict as a label of 0 or 1."""
    path = ROOT / "tests" / "data" / "pairs" / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Comparison(
            id=row["id"], prompt=row["prompt"], a=row["a"], b=row["b"],
            p_a=float(row["better"] == "a"), method="readers", principles=[],
        )
        for row in rows
        if row["better"] != "undecided"
    ]  # fmt: skip


def measure(rows: list[Comparison], truth: list[Comparison]) -> dict[str, object]:
    """Agreement with readers, a tie or no label counting half, and calibration."""
    p_a = {row.id: row.p_a for row in rows}
    p = np.array([p_a.get(row.id, 0.5) for row in truth])
    a = np.array([row.p_a for row in truth])
    right = np.where(p == 0.5, 0.5, (p > 0.5) == a)
    return {
        "agreement": round(float(right.mean()), 4),
        "ci": share_interval(right),
        "n": len(truth),
        "no_label": len(truth) - len(rows),
        "brier": brier(p, a),
        "ece": calibration_error(p, a),
    }


def scratch_run(folder: Path, kept: Path) -> Run:
    """The run without its labels, in a folder of its own."""
    for name in ("critique_revision", "contrast"):
        shutil.copytree(folder / name, kept / name)
    for name in ("manifest.json", "constitution.yaml"):
        shutil.copy(folder / name, kept / name)
    return open_run(kept)


def main(folder: str, count: int | None = None) -> None:
    """Label the pairs in every way, keep the labels and print how far they agree with readers."""
    truth = read_pairs()[:count]
    found, kept = {}, list(truth)
    with tempfile.TemporaryDirectory() as scratch:
        run = scratch_run(Path(folder), Path(scratch))
        base = load_base(run.preset)
        fields = {"id", "prompt", "a", "b"}
        pairs = [Pair(**row.model_dump(include=fields)) for row in truth]
        work = [(pair, principles_for(run, pair)) for pair in pairs]
        for name, labeller in LABELLERS.items():
            start = time.perf_counter()
            rows = labeller(run, base, work)
            found[name] = measure(rows, truth)
            print(name, f"{time.perf_counter() - start:.0f} s", found[name], flush=True)
            kept += rows
    lines = (row.model_dump_json() + "\n" for row in kept)
    write_text(shipped("data", "samples", "labels.jsonl"), "".join(lines))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
