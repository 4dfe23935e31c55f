"""Read a finished run's answers again, after the outcome classifier was fitted anew.

    python benchmarks/read_again.py RUN

No model answers again and nothing else is measured anew: outcomes, harmfulness and what is counted
from them change: in `evaluation/` (the report and the cards are written again by `cai-lite run`),
in the rounds of `cai-lite iterate`, and in `tell_apart.json`, which lies in data/samples. What was
measured while RL ran stays as it was, for those answers are not kept. The last line on stdout is
JSON: how many outcomes changed, of how many.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cai_lite.answers import of, summarise
from cai_lite.engine.outcomes import OutcomeClassifier, harmfulness, likeliest, load_classifier
from cai_lite.records import Answer, Rows, read_json, write_json, write_text
from cai_lite.run import Run, open_run
from cai_lite.stages.evaluation import compared
from cai_lite.stages.iterate import write_rounds


def read_again(reader: OutcomeClassifier, path: Path) -> tuple[list[Answer], int]:
    """The answers of a file with new outcomes, written in its place, and how many changed."""
    rows = Rows(path, Answer).read()
    shares = reader.read([row.prompt for row in rows], [row.response for row in rows])
    found = [
        row.model_copy(update={"outcome": outcome, "harmfulness": harm})
        for row, outcome, harm in zip(rows, likeliest(shares), harmfulness(shares), strict=True)
    ]
    write_text(path, "".join(row.model_dump_json() + "\n" for row in found))
    return found, sum(a.outcome != b.outcome for a, b in zip(rows, found, strict=True))


def evaluation(run: Run, reader: OutcomeClassifier) -> tuple[int, int]:
    """Count the evaluation's measures again; returns how many outcomes changed, of how many."""
    rows, changed = read_again(reader, run.path("evaluation", "answers.jsonl"))
    path = run.path("evaluation", "done.json")
    summary = read_json(path)
    answers = {name: [r for r in rows if r.model == name] for name in summary["models"]}
    for name, own in answers.items():
        summary["models"][name] |= summarise(run, own)
    write_json(path, summary | compared(run, answers, reader))
    return changed, len(rows)


def rounds(run: Run, reader: OutcomeClassifier, folders: Sequence[Path]) -> tuple[int, int]:
    """The same for the answers of each round of `cai-lite iterate`, and their table."""
    changed = read = 0
    measured = []
    for folder in folders:
        rows, different = read_again(reader, folder / "answers.jsonl")
        changed, read = changed + different, read + len(rows)
        rows = [row for row in rows if row.model == rows[-1].model]  # a round made again adds to it
        found, again = read_json(folder / "measured.json"), summarise(run, rows)
        red_team = {row.prompt: row for row in of(rows, "red_team")}
        shown = [one | {"outcome": red_team[one["prompt"]].outcome} for one in found["answers"]]
        found |= {name: again[name] for name in found if name in again and name != "n"}
        measured.append(found | {"answers": shown})
        write_json(folder / "measured.json", measured[-1])
    write_rounds(run, measured)
    return changed, read


def told_apart(path: Path, reader: OutcomeClassifier) -> tuple[int, int]:
    """The same for the answers of models that were told apart."""
    pairs = read_json(path)
    changed = read = 0
    for texts in (pair["texts"] for pair in pairs.values()):
        for name in "ab":
            found = reader.outcomes(texts["prompts"], texts[name])
            before = texts[f"outcomes_{name}"]
            changed += sum(a != b for a, b in zip(before, found, strict=True))
            read += len(found)
            texts[f"outcomes_{name}"] = found
    write_json(path, pairs)
    return changed, read


def main(folder: str) -> None:
    """Read, count, write."""
    run, reader = open_run(folder), load_classifier()
    found = {}
    if run.summary("evaluation") is not None:
        found["evaluation"] = evaluation(run, reader)
    if folders := sorted(path.parent for path in run.folder.glob("rounds/*/measured.json")):
        found["rounds"] = rounds(run, reader, folders)
    if (path := run.folder / "tell_apart.json").exists():
        found["tell_apart"] = told_apart(path, reader)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
