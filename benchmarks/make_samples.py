"""Copy a finished run into data/samples, adapters in float16.

Use: python benchmarks/make_samples.py runs/cpu
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
# of no run: benchmarks/ made them
KEPT = ("ablations.jsonl", "labels.jsonl", "labels_large.jsonl", "goodhart.json", "rounds.json",
        "tell_apart.json", "tell_apart.jsonl")  # fmt: skip
LEFT_OUT = ("run.lock", "checkpoints", "by_step", "rounds", "README.md", "report.html")


def halve(path: Path) -> None:
    """Store weights in float16: half the bytes, and far finer than what a LoRA update needs."""
    weights = {name: value.to(torch.float16) for name, value in load_file(path).items()}
    save_file(weights, path)


def main(run: Path) -> None:
    """Replace the samples by this run."""
    if not (run / "report.json").is_file():
        sys.exit(f"{run} has no report.json; finish it first: cai-lite run --out {run}")
    kept = {path: path.read_bytes() for name in KEPT if (path := SAMPLES / name).exists()}
    shutil.rmtree(SAMPLES, ignore_errors=True)
    shutil.copytree(run, SAMPLES, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for path, content in kept.items():
        path.write_bytes(content)
    for path in SAMPLES.glob("*/adapter/*.safetensors"):
        halve(path)
    for path in SAMPLES.glob("*/adapter/adapter_config.json"):
        config = json.loads(path.read_text()) | {"base_model_name_or_path": None}
        path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
