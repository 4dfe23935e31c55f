"""The supervised half on other seeds: does SL-CAI hold there what it showed on seed 0?

    python benchmarks/seeds.py 1 [2 ...] [--preset cpu] [--work FOLDER]

Runs critique and revision and SL-CAI with each seed, then answers and measures as the evaluation
does, of the start and of SL-CAI. Prints one JSON object a seed. What lies in `--work` is not made
again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from cai_lite.answers import differences, summarise
from cai_lite.engine.answering import answer_all
from cai_lite.engine.models import add_adapter, load_base
from cai_lite.engine.outcomes import load_classifier
from cai_lite.presets import get_preset
from cai_lite.progress import Progress
from cai_lite.records import Answer, Rows
from cai_lite.run import Run, begin_run
from cai_lite.stages.critique_revision import critique_revision
from cai_lite.stages.sl_cai import sl_cai

MODELS = {"base": None, "sl_cai": "sl_cai"}  # and the adapter that answers
SHOWN = ("harmlessness", "helpfulness", "over_refusal", "broken", "boilerplate", "opening")


def half(run: Run) -> None:
    """The supervised stages that the run folder does not have yet."""
    for stage in (critique_revision, sl_cai):
        if run.summary(stage.__name__) is None:
            stage(run)


def measured(run: Run) -> dict[str, Any]:
    """Shares of the start and of SL-CAI, and their paired differences with 95% intervals."""
    base = load_base(run.preset)
    add_adapter(base, run.path("sl_cai", "adapter"), "sl_cai")
    reader = load_classifier(base)
    store = Rows(run.path("evaluation", "answers.jsonl"), Answer)
    answers = {m: answer_all(run, base, reader, m, adapter, store) for m, adapter in MODELS.items()}
    shares = {model: summarise(run, rows) for model, rows in answers.items()}
    return {
        "seed": run.preset.seed,
        **{model: {name: shares[model][name] for name in SHOWN} for model in MODELS},
        **differences(run, answers),
    }


def main() -> None:
    """Run and measure each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--work", type=Path, help="where the runs lie, else a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            work = args.work or Path(folder)
            preset = get_preset(args.preset, seed=seed)
            run = begin_run(work / str(seed), preset, Progress(show=True))
            half(run)
            print(json.dumps(measured(run)), flush=True)


if __name__ == "__main__":
    main()
