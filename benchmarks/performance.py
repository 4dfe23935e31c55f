"""Print the README's performance table from finished runs.

Use: python benchmarks/performance.py runs/*
"""

import json
import sys
from pathlib import Path


def row(report: dict, device: str) -> str:
    """One line of the table: minutes a stage and the highest peak of memory."""
    minutes = [f"{seconds / 60:.1f}" for seconds in report["seconds"].values()]
    total = sum(report["seconds"].values()) / 60
    peak = max(report["peak_memory_mb"].values()) / 1000
    cells = [report["preset"], device, *minutes, f"{total:.1f}", f"{peak:.1f} GB"]
    return "| " + " | ".join(cells) + " |"


def main(folders: list[str], device: str = "") -> None:
    """Read each run's report and print header and rows."""
    reports = [json.loads((Path(folder) / "report.json").read_text()) for folder in folders]
    stages = [stage.replace("_", " ") for stage in reports[0]["seconds"]]
    header = ["preset", "device", *stages, "all, minutes", "peak memory"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for report in reports:
        print(row(report, device or report.get("device", "")))


if __name__ == "__main__":
    main(sys.argv[1:])
