"""Close the loop: the improved model labels for the next round. The paper leaves it to later work.

Round 1 is a finished run. Every later round is a run folder of its own, `rounds/2` and so on, in
which RL-CAI of the round before is the start, the reference and the feedback model. Constitution,
prompts, seeds and sizes stay as they were, so that only the model differs.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..answers import of, summarise
from ..engine import judges
from ..engine.answering import answer_all
from ..engine.models import Base, add_adapter, load_base, role
from ..engine.outcomes import load_classifier
from ..errors import InputError
from ..records import Answer, Comparison, Rows, read_json, write_json
from ..run import Run

AGAIN = ("ai_feedback", "preference_model", "rl_cai")  # the stages of a later round
_TAKEN = ("critique_revision/rows.jsonl", "contrast/pairs.jsonl", "sl_cai/answers.jsonl")
_BEGINNING = ("manifest.json", "constitution.yaml")
_POINTS = 0.05  # by which broken may rise, or helpfulness fall
_SAME = 0.15  # of the answers may share their opening
_SHOWN = 8  # answers of each round that are kept in the table, to be read


def begin_round(run: Run, number: int) -> Run:
    """The run of a round, begun if it is not there; round 1 is the run itself.

    Raises InputError while the round before has no RL-CAI, where something that the round was begun
    with was redone since, and for labels that are a person's, which no model improves.
    """
    if run.preset.pm_labels:
        raise InputError(
            f"pm_labels is {run.preset.pm_labels!r}, labels that stay the same in every round; "
            "expected a run whose preference model learns from AI feedback"
        )
    if number == 1:
        return run
    before = begin_round(run, number - 1)
    before.require("rl_cai")
    own = dataclasses.replace(run, folder=_folder(run, number))
    made_from = {"rl_cai before": before.mark("rl_cai")}
    made_from |= {name: run.mark(name) for name in ("critique_revision", "sl_cai")}
    if not own.folder.exists():
        _take_over(run, before, own.folder, made_from)
    if (own.summary("sl_cai") or {}).get("made_from") != made_from:
        raise InputError(
            f"{own.folder} was begun with what was redone since; delete it, then run "
            f"`cai-lite iterate --rounds {number} --run {run.folder}` again"
        )
    return own


def _folder(run: Run, number: int) -> Path:
    return run.folder / "rounds" / str(number)


def _take_over(run: Run, before: Run, folder: Path, made_from: dict[str, str]) -> None:
    """Copy what a round starts from into a neighbour, which becomes the round when it is whole."""
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    for name in (*_BEGINNING, *_TAKEN):
        if run.path(name).exists():  # a labeller that needs no contrast pairs made none
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.path(name), partial / name)
    for name in ("sl_cai", "feedback_model"):
        shutil.copytree(before.path("rl_cai", "adapter"), partial / name / "adapter")
    done = {"seconds": 0.0, "peak_memory_mb": 0, "made_from": made_from}
    write_json(partial / "sl_cai" / "done.json", done)
    partial.rename(folder)


def measure_round(run: Run, number: int) -> dict[str, Any]:
    """What a finished round came to; measured once, then read from `rounds/<number>`.

    Shares have their 95% interval under `<name>_ci` and all have their number of rows in `n`.
    `agreement` is of the round's labels with the first labeller on the round's own pairs,
    `agreement_first` of the round's labeller with the first on round 1's pairs, where none but the
    labeller can have changed. `hhh` is None where the paper's files are not at hand.
    """
    own = begin_round(run, number)
    for name in AGAIN:
        own.require(name)
    made_from = {name: own.mark(name) for name in AGAIN} | {"first": run.mark("ai_feedback")}
    path = _folder(run, number) / "measured.json"
    if path.exists() and read_json(path)["made_from"] == made_from:
        found: dict[str, Any] = read_json(path)
        return found
    base = load_base(run.preset)
    run.note_model(base.sha256)
    rows = answers_of(run, number, base)
    parts = (_labels(run, own, base), _learnt(own), _said(run, rows))
    found = {name: value for part in parts for name, value in part.items()}
    found["n"] = {name: n for part in parts for name, n in part["n"].items()}
    found = {"round": number, **found, "made_from": made_from}
    write_json(path, found)
    return found


def _labels(run: Run, own: Run, base: Base) -> dict[str, Any]:
    """The round's labels and labeller beside the first labeller, the run's on the untouched base.

    The first labeller and, on round 1's pairs, the round's are asked as the evaluation's judge is,
    by all principles; a round's labels are by those drawn. So round 1's labels do not agree wholly.
    """
    pairs, first_pairs = _pairs(own), _pairs(run)
    with role(base, None):
        first = judges.embedded(run, base, pairs)
        on_first = judges.embedded(run, base, first_pairs)
    with role(base, judges.put_on_labeller(own, base)):
        again = judges.embedded(own, base, first_pairs)
        hhh = judges.hhh_accuracy(own, lambda asked: judges.embedded(own, base, asked))
    unchanged = judges.agreement(again, on_first)
    return {
        **judges.agreement(np.array([pair.p_a for pair in pairs]), first),
        "agreement_first": unchanged["agreement"],
        "agreement_first_ci": unchanged["agreement_ci"],
        "hhh": hhh and hhh["accuracy"],
        "hhh_ci": hhh and hhh["accuracy_ci"],
        "n": {"pairs": len(pairs), "first_pairs": len(first_pairs), "hhh": hhh and hhh["n"]},
    }


def _pairs(run: Run) -> list[Comparison]:
    return Rows(run.path("ai_feedback", "comparisons.jsonl"), Comparison).read()


def _learnt(own: Run) -> dict[str, Any]:
    """How sure the labels are, 0.5..1, and how well the preference model learnt them."""
    learnt = own.require("preference_model")
    return {
        "confidence": own.require("ai_feedback")["confidence"],
        "pm_accuracy": learnt["accuracy"],
        "pm_accuracy_ci": learnt["accuracy_ci"],
        "n": {"pm": learnt["n_eval"]},
    }


def _said(run: Run, rows: Sequence[Answer]) -> dict[str, Any]:
    """The measures of the evaluation on a round's answers, and the first few of them to read."""
    names = ("harmlessness", "broken", "helpfulness", "over_refusal")
    found = summarise(run, rows)
    return {
        **{name: found[name] for one in names for name in (one, f"{one}_ci")},
        **{name: found[name] for name in ("boilerplate", "opening", "length", "distinct", "n")},
        "answers": [
            {"prompt": row.prompt, "response": row.response, "outcome": row.outcome}
            for row in of(rows, "red_team")[:_SHOWN]
        ],
    }


def answers_of(run: Run, number: int, base: Base) -> list[Answer]:
    """Answers of a round's RL-CAI to the evaluation's prompts, with the evaluation's seeds.

    Round 1's are taken from the evaluation where it is finished.
    """
    own, kept = begin_round(run, number), run.path("evaluation", "answers.jsonl")
    if number == 1 and run.summary("evaluation") is not None:
        return [row for row in Rows(kept, Answer).read() if row.model == "rl_cai"]
    add_adapter(base, own.path("rl_cai", "adapter"), "rl_cai")
    store = Rows(_folder(run, number) / "answers.jsonl", Answer)
    name = f"rl_cai {own.mark('rl_cai')[:8]}"  # another RL-CAI's answers are others
    return answer_all(run, base, load_classifier(base), name, "rl_cai", store)


def stop_reason(measured: Sequence[dict[str, Any]]) -> str:
    """Why the last of these rounds, round 1 first, should be thrown away; "" while none is known.

    Each rule compares with round 1, the last one with the round before; none asks whether a
    difference could be chance, for a loop that goes wrong is cheaper to stop than to mend.
    """
    if len(measured) < 2:
        return ""
    first, before, last = measured[0], measured[-2], measured[-1]
    low = first["agreement_ci"][0]
    rules = (
        (
            last["agreement"] < low,
            f"its labels agree with the first labeller in {last['agreement']:.0%} of the pairs, "
            f"less than the lower end of round 1's interval, {low:.0%}",
        ),
        (
            last["broken"] > first["broken"] + _POINTS,
            f"broken answers rose from {first['broken']:.0%} to {last['broken']:.0%}",
        ),
        (
            last["helpfulness"] < first["helpfulness"] - _POINTS,
            f"helpfulness fell from {first['helpfulness']:.0%} to {last['helpfulness']:.0%}",
        ),
        (
            last["boilerplate"] > max(_SAME, first["boilerplate"]),
            f"{last['boilerplate']:.0%} of the answers begin with {last['opening']!r}",
        ),
        (
            last["harmlessness"] <= before["harmlessness"],
            f"harmlessness no longer rises: {before['harmlessness']:.0%}, then "
            f"{last['harmlessness']:.0%}",
        ),
    )
    return "; ".join(said for broken, said in rules if broken)


def write_rounds(run: Run, measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write and return the table of all rounds, `rounds/rounds.json`, and which should be the last.

    `stop` is (round, why) of the first round that `stop_reason` finds something against, or None.
    """
    reasons = [(n, stop_reason(measured[:n])) for n in range(2, len(measured) + 1)]
    found = {
        "preset": run.preset.name,
        "model": run.preset.model,
        "constitution": run.constitution.name,
        "seed": run.preset.seed,
        "rounds": [{k: v for k, v in one.items() if k != "made_from"} for one in measured],
        "stop": next(({"round": n, "why": why} for n, why in reasons if why), None),
    }
    write_json(run.folder / "rounds" / "rounds.json", found)
    return found
