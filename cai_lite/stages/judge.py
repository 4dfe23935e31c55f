"""A second opinion: a judge behind an endpoint compares the models' answers (paper §4).

The evaluation's own judge shares its weights and its principles with what it judges. This one is
another model, as large as you can reach; no model is loaded here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..elo import judgement, matches, rating
from ..engine.endpoint import MODEL, Endpoint, endpoint_from_environment
from ..errors import InputError
from ..records import Answer, Judgement, Pair, Rows, fill
from ..run import Run, stage


def judge(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder with a finished evaluation; returns its summary.

    Leaves `judgements.jsonl`, one Judgement a red-team prompt and two models; a pair that the judge
    gives no letter for has none and is counted.
    """
    with stage(run, "judge", after=("evaluation",)) as summary:
        endpoint = endpoint_from_environment()
        answers = by_model(Rows(run.path("evaluation", "answers.jsonl"), Answer).read())
        work = matches(answers, "red_team")
        rows = judge_all(run, endpoint, work)
        if not rows:
            raise InputError(
                f"{endpoint.model} gave neither A nor B a chance in any of {len(work)} pairs; "
                f"expected a model that answers with a letter: name another in {MODEL}"
            )
        firsts = np.array([row.p_first for row in rows], dtype=float)
        seed = run.seed("bootstrap", "elo")
        summary |= {
            "judge": endpoint.model,
            "n_no_label": len(work) - len(rows),
            "position_bias": round(float(firsts.mean()), 4),
            "n_swayed": int(((firsts > 0.5).all(1) | (firsts < 0.5).all(1)).sum()),
            "elo": {
                "harmlessness": rating(rows, list(answers), "sl_cai", run.preset.bootstrap, seed)
            },
        }
    return summary


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
    others = {row.judge for row in store.read()} - {endpoint.model}
    if others:
        raise InputError(
            f"{run.path('judge')} has judgements of {others.pop()!r}, now the judge is "
            f"{endpoint.model!r}; delete the folder, or name the first one in {MODEL}"
        )
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


def _judge(endpoint: Endpoint, work: Sequence[tuple[Answer, Answer]]) -> list[Judgement]:
    """P(A) averaged over both orders, of the pairs that have a letter in both."""
    pairs = [Pair(id=a.prompt_id, prompt=a.prompt, a=a.response, b=b.response) for a, b in work]
    found = zip(work, endpoint.judge(pairs), strict=True)
    return [
        judgement(a, b, 0.5 + (first - second) / 2, endpoint.model).model_copy(
            update={"p_first": [round(float(first), 6), round(float(second), 6)]}
        )
        for (a, b), (first, second) in found
        if not np.isnan(first + second)
    ]
