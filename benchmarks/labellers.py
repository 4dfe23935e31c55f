"""How far each labeller agrees with readers, on pairs of the models' own answers.

    python benchmarks/labellers.py RUN [MODEL] [METHOD …] [field=value …]

RUN is a finished run of the embedded model: its revisions and contrast pairs teach the contrast
reader. MODEL, a .gguf file, a folder or a hub id, judges in the embedded model's place, whole, on
a CPU in bfloat16, and learns from the same texts. Without a METHOD all are tried; labels of others
stay as they are. Fields are those of a preset. The pairs, and how language models read them, are
in tests/data/pairs; none of them was used to make a labeller. Of the 200, those that readers
decided are labelled. Every label is kept in data/samples/labels.jsonl, a MODEL's in
labels_large.jsonl, and notebook 03 shows both. The last line on stdout is JSON.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cai_lite.engine.models import Base, load_base
from cai_lite.files import shipped
from cai_lite.measures import brier, calibration_error, share_interval
from cai_lite.presets import get_preset
from cai_lite.records import Comparison, Pair, Rows, write_text
from cai_lite.run import Run, open_run
from cai_lite.stages.ai_feedback import LABELLERS, principles_for

ROOT = Path(__file__).parents[1]
_PAIR = {"id", "prompt", "a", "b"}


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


def scratch_run(folder: Path, kept: Path, fields: dict[str, str]) -> Run:
    """The run without its labels, in a folder of its own, with these fields of its preset."""
    for name in ("critique_revision", "contrast"):
        shutil.copytree(folder / name, kept / name)
    for name in ("manifest.json", "constitution.yaml"):
        shutil.copy(folder / name, kept / name)
    run = open_run(kept)
    begun = run.preset.model_dump() | fields
    return replace(run, preset=get_preset(begun.pop("name"), **begun))


def judge(run: Run, model: str) -> Base:
    """The model that judges; on a CPU a large one in bfloat16, in half the time and memory."""
    base = load_base(run.preset)
    if model and base.device.type == "cpu":
        base.model.to(torch.bfloat16)
        base.dtype = torch.bfloat16
    return base


def kept_labels(path: Path, methods: Sequence[str]) -> list[Comparison]:
    """The labels that are in the file by methods other than these."""
    return [row for row in Rows(path, Comparison).read() if row.method not in methods]


def main(folder: str, *rest: str) -> None:
    """Label the pairs, keep the labels and print how far they agree with readers."""
    fields = dict(word.split("=", 1) for word in rest if "=" in word)
    methods = [word for word in rest if word in LABELLERS] or list(LABELLERS)
    model = next((word for word in rest if word not in LABELLERS and "=" not in word), "")
    if model:
        fields |= {"model": model, "model_sha256": "", "quantization": "none"}
    path = shipped("data", "samples", "labels_large.jsonl" if model else "labels.jsonl")
    truth, found = read_pairs(), {}
    with tempfile.TemporaryDirectory() as scratch:
        run = scratch_run(Path(folder), Path(scratch), fields)
        base = judge(run, model)
        work = [
            (pair, principles_for(run, pair))
            for pair in (Pair(**row.model_dump(include=_PAIR)) for row in truth)
        ]
        for method in methods:
            start = time.perf_counter()
            rows = LABELLERS[method](run, base, work)
            found[method] = measure(rows, truth) | {
                "principles": run.preset.principles_per_pair,
                "seconds": round(time.perf_counter() - start),
            }
            print(method, json.dumps(found[method]), flush=True)
            rows = [*truth, *kept_labels(path, ["readers", method]), *rows]
            write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
