"""Kill `cai-lite run` at random moments and compare its rows with an undisturbed run's.

Use: python benchmarks/kill_test.py [--kills 10] [--seed 0] -- --preset ci --set rounds=1
What follows `--` goes to `cai-lite run`. The last line is JSON: {"kills": …, "rows_equal": …}.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(folder: Path, options: list[str]) -> list[str]:
    """The run under test, into this folder."""
    return [sys.executable, "-m", "cai_lite.cli", "run", *options, "--out", str(folder)]


def undisturbed(folder: Path, options: list[str]) -> float:
    """Run to the end; returns its seconds."""
    started = time.monotonic()
    subprocess.run(command(folder, options), check=True, capture_output=True)
    return time.monotonic() - started


def killed(folder: Path, options: list[str], kills: int, seconds: float, seed: int) -> int:
    """Kill the run at random moments, then let it end; returns how many kills hit."""
    moments, hits = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(folder, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(moments.uniform(0.05, 0.35) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits += 1
    subprocess.run(command(folder, options), check=True, capture_output=True)
    return hits


def rows(folder: Path) -> dict[str, str]:
    """Every file of rows in a run folder, by its name."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.jsonl"))}


def main() -> None:
    """Run twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        whole, broken = Path(top) / "whole", Path(top) / "broken"
        seconds = undisturbed(whole, given.options)
        hits = killed(broken, given.options, given.kills, seconds, given.seed)
        first, second = rows(whole), rows(broken)
    differing = sorted(name for name in first | second if first.get(name) != second.get(name))
    result = {"kills": hits, "seconds": round(seconds), "files": len(first), "differing": differing}
    print(json.dumps(result | {"rows_equal": not differing}))


if __name__ == "__main__":
    main()
