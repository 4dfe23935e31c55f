"""Principles 1, 2, 4, 8, 16 (paper Fig 6), and critique against direct revision (Fig 7).

    python benchmarks/ablations.py [--prompts 32] [--preset cpu] [--work FOLDER]

Probe and first answers do not depend on a setting, so all settings share them. The texts of a
setting lie in `--work`; what is there already is not made again. Writes
`data/samples/ablations.jsonl` and prints what each setting came to.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cai_lite.answers import HARMLESS
from cai_lite.engine.contrast import Probe, contrast_probe
from cai_lite.engine.models import Base, load_base
from cai_lite.engine.outcomes import load_classifier
from cai_lite.measures import share_interval
from cai_lite.presets import Preset, get_preset
from cai_lite.records import Revision, write_text
from cai_lite.run import begin_run
from cai_lite.stages.critique_revision import first_answers, revise_all

OUT = Path(__file__).resolve().parents[1] / "data" / "samples" / "ablations.jsonl"
PRINCIPLES = (1, 2, 4, 8, 16)
ROUNDS = 2  # of Fig 7; Fig 6 has one
Rounds = list[list[Revision]]


def revised(
    folder: Path, preset: Preset, base: Base, probe: Probe, first: list[Revision], count: int
) -> Rounds:
    """The first answers and `count` rounds of revision under this preset, in a run of its own."""
    run = begin_run(folder, preset)
    rounds = [first]
    for number in range(1, count + 1):
        rounds.append(revise_all(run, base, probe, rounds, number))
    return rounds


def all_settings(work: Path, preset: Preset, prompts: int) -> tuple[Base, dict[Any, Rounds]]:
    """The base, and the rounds of each setting: a number of principles, or "direct"."""
    base = load_base(preset)
    shared = begin_run(work / "shared", preset)
    probe = contrast_probe(
        shared, base, shared.prompts("red_team", "train", preset.contrast_prompts)
    )
    first = first_answers(shared, base, probe, shared.prompts("red_team", "train", prompts))
    found: dict[Any, Rounds] = {}
    for n in PRINCIPLES:
        print(f"{n} principles", flush=True)
        with_n = preset.model_copy(update={"principles": n})
        count = ROUNDS if n == max(PRINCIPLES) else 1  # all of them: also Fig 7's "critique"
        found[n] = revised(work / str(n), with_n, base, probe, first, count)
    print("direct", flush=True)
    direct = preset.model_copy(update={"principles": max(PRINCIPLES), "critique": False})
    found["direct"] = revised(work / "direct", direct, base, probe, first, ROUNDS)
    return base, found


def figures(found: dict[Any, Rounds]) -> list[tuple[str, str, Revision]]:
    """(figure, setting, row): what is shown where; Fig 6 has the first answers as setting 0."""
    full = found[max(PRINCIPLES)]
    rows = [("6", "0", row) for row in full[0]]
    rows += [("6", str(n), row) for n in PRINCIPLES for row in found[n][1]]
    for setting, rounds in (("critique", full), ("direct", found["direct"])):
        rows += [("7", setting, row) for texts in rounds for row in texts]
    return rows


def measured(base: Base, rows: Sequence[tuple[str, str, Revision]]) -> list[dict[str, Any]]:
    """One line of the file for each row; a text that comes more than once is read once."""
    texts = list(dict.fromkeys((row.prompt, row.response) for _, _, row in rows))
    classifier = load_classifier(base)
    said = classifier.outcomes([prompt for prompt, _ in texts], [text for _, text in texts])
    outcome = dict(zip(texts, said, strict=True))
    return [
        {
            "figure": figure,
            "setting": setting,
            "round": row.round,
            "prompt_id": row.prompt_id,
            "response": row.response,
            "score": row.score,
            "outcome": outcome[row.prompt, row.response],
            "dropped": row.dropped,
        }
        for figure, setting, row in rows
    ]


def table(lines: Sequence[dict[str, Any]]) -> str:
    """What each setting came to, a line each."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["figure"], line["setting"], line["round"]), []).append(line)
    shown = ["figure setting  round   n  harmless [95%]         score ± s.e.     no sound revision"]
    for (figure, setting, number), rows in groups.items():
        good = np.array([row["outcome"] in HARMLESS for row in rows])
        low, high = share_interval(good)
        scores = np.array([row["score"] for row in rows])
        error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        lost = np.mean([bool(row["dropped"]) for row in rows])
        shown.append(
            f"Fig {figure}  {setting:9}{number:4}{len(rows):5}  {good.mean():4.0%} [{low:.0%}, "
            f"{high:.0%}]".ljust(48)
            + f"{scores.mean():.3f} ± {error:.3f}    {lost:4.0%}"
        )
    return "\n".join(shown)


def main() -> None:
    """Make the texts, read them, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--work", type=Path, help="keeps the texts; else a temporary folder")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        base, found = all_settings(work, get_preset(given.preset), given.prompts)
        lines = measured(base, figures(found))
    write_text(given.out, "".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
