"""A second opinion: a judge behind an endpoint, or a person, compares the answers (paper §4).

The evaluation's own judge shares its weights and its principles with what it judges. These are
another model, as large as you can reach, or you; no model is loaded here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..elo import as_pair, judgement, matches, rating
from ..engine.endpoint import MODEL, Endpoint, endpoint_from_environment
from ..engine.judges import hhh_accuracy
from ..errors import InputError
from ..records import Answer, Comparison, Judgement, Pair, Rows, fill, write_text
from ..run import Run, stage

PERSON = "a person"


def judge(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder with a finished evaluation; returns its summary.

    Leaves `judgements.jsonl`, one Judgement a red-team prompt and two models; a pair that the judge
    gives no letter for has none and is counted. A person's labels, where `take_labels` left them,
    are the judge; else the endpoint that the environment names.
    """
    with stage(run, "judge", after=("evaluation",)) as summary:
        answers = by_model(Rows(run.path("evaluation", "answers.jsonl"), Answer).read())
        work = matches(answers, "red_team")
        by = by_person if run.path("judge", "labels.jsonl").exists() else by_endpoint
        rows, about = by(run, work)
        seed = run.seed("bootstrap", "elo")
        elo = rating(rows, list(answers), "sl_cai", run.preset.bootstrap, seed)
        summary |= about | {"elo": {"harmlessness": elo}}
    return summary


def by_person(
    run: Run, work: Sequence[tuple[Answer, Answer]]
) -> tuple[list[Judgement], dict[str, Any]]:
    """A person's judgements of the pairs they labelled; "neither" is a tie."""
    said = {row.id: row.p_a for row in Rows(run.path("judge", "labels.jsonl"), Comparison).read()}
    known = [(a, b, said.get(as_pair(a, b).id)) for a, b in work]
    found = [judgement(a, b, p_a, PERSON) for a, b, p_a in known if p_a is not None]
    text = "".join(row.model_dump_json() + "\n" for row in found)
    write_text(run.path("judge", "judgements.jsonl"), text)
    return found, {"judge": PERSON, "n_no_label": len(work) - len(found)}


def take_labels(run: Run, file: Path) -> None:
    """Let a person's labels of the evaluation's answers be the judge.

    `file` is a JSONL of comparisons as the labelling widget writes them. Raises InputError if there
    are none, or one is not a person's or not of this evaluation's answers.
    """
    answers = by_model(Rows(run.path("evaluation", "answers.jsonl"), Answer).read())
    pairs = {pair.id: pair for pair in (as_pair(*two) for two in matches(answers, "red_team"))}
    rows = Rows(file, Comparison).read()
    if not rows:
        raise InputError(f"{file} has no labels; make some with the widget of notebook 06")
    for row in rows:
        pair = pairs.get(row.id)
        if row.method != "person" or pair is None or (pair.a, pair.b) != (row.a, row.b):
            raise InputError(
                f"{file}: {row.id!r} is not a person's label of two answers in {run.folder}; "
                "expected labels made on this evaluation's answers"
            )
    _refuse_other_judge(run, PERSON)
    run.path("judge", "done.json").unlink(missing_ok=True)
    text = "".join(row.model_dump_json() + "\n" for row in rows)
    write_text(run.path("judge", "labels.jsonl"), text)


def by_endpoint(
    run: Run, work: Sequence[tuple[Answer, Answer]]
) -> tuple[list[Judgement], dict[str, Any]]:
    """The judgements of the endpoint in the environment, and what is known of that judge."""
    endpoint = endpoint_from_environment()
    rows = judge_all(run, endpoint, work)
    if not rows:
        raise InputError(
            f"{endpoint.model} gave neither A nor B a chance in any of {len(work)} pairs; "
            f"expected a model that answers with a letter: name another in {MODEL}"
        )
    firsts = np.array([row.p_first for row in rows], dtype=float)
    return rows, {
        "judge": endpoint.model,
        "n_no_label": len(work) - len(rows),
        "position_bias": round(float(firsts.mean()), 4),
        "n_swayed": int(((firsts > 0.5).all(1) | (firsts < 0.5).all(1)).sum()),
        "hhh": hhh_accuracy(run, lambda pairs: _p_a(endpoint, pairs)[0]),
    }


def by_model(rows: Sequence[Answer]) -> dict[str, list[Answer]]:
    """The answers of each model, in the order they were written."""
    found: dict[str, list[Answer]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found


def judge_all(
    run: Run, endpoint: Endpoint, work: Sequence[tuple[Answer, Answer]]
) -> list[Judgement]:
    """The judgements of all pairs, asked for in batches and kept as they come.

    Raises InputError if another judge began: two judges' opinions are no one's.
    """
    store = Rows(run.path("judge", "judgements.jsonl"), Judgement)
    _refuse_other_judge(run, endpoint.model)
    with run.progress.bar("judgements", len(work)) as advance:
        return fill(
            store,
            work,
            lambda pair: judgement(*pair, 0.5, "").id,
            lambda batch: _judge(endpoint, batch),
            run.preset.batch_size,
            advance,
            may_lack=True,
        )


def _refuse_other_judge(run: Run, judge: str) -> None:
    rows = Rows(run.path("judge", "judgements.jsonl"), Judgement).read()
    others = {row.judge for row in rows} - {judge}
    if others:
        raise InputError(
            f"{run.path('judge')} has judgements of {others.pop()!r}, now the judge is {judge!r}; "
            f"delete the folder, or name the first one in {MODEL}"
        )


def _judge(endpoint: Endpoint, work: Sequence[tuple[Answer, Answer]]) -> list[Judgement]:
    """P(A) averaged over both orders, of the pairs that have a letter in both."""
    p_a, firsts = _p_a(endpoint, [as_pair(a, b) for a, b in work])
    return [
        judgement(a, b, p, endpoint.model).model_copy(
            update={"p_first": [round(float(one), 6) for one in first]}
        )
        for (a, b), p, first in zip(work, p_a, firsts, strict=True)
        if not np.isnan(p)
    ]


def _p_a(endpoint: Endpoint, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """P(A is better), (pairs,), nan without a letter, and P(first) in both orders, (pairs, 2)."""
    firsts = endpoint.judge(pairs)
    return 0.5 + (firsts[:, 0] - firsts[:, 1]) / 2, firsts
