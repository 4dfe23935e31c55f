"""Two constitutions on the same pairs of answers: where they agree, where they part, what is idle.

The same model is asked each principle's own question about each answer (pointwise), so nothing is
trained and only the principles differ. A small model hears the principles badly (notebook 03): what
is compared is what it makes of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from .. import lens
from ..constitution import Constitution
from ..engine import judges, labellers
from ..engine.models import Base, load_base
from ..errors import InputError
from ..measures import share_interval
from ..records import Pair, Rows
from ..run import Run

_SHOWN = 5  # pairs on which two constitutions part most, or one is torn most
_FIRES = 0.1  # a principle has something to say of a pair where P(A) is further than this from ½


def compare_constitutions(
    run: Run, first: Constitution, second: Constitution, limit: int | None = None
) -> dict[str, Any]:
    """Label a run's pairs by both, and say how often and where they agree; trains nothing.

    Agreement is of the two ensembles' sides, with Wilson's interval and Cohen's kappa; no kappa
    where both always take the same side. InputError for a run without pairs.
    """
    pairs = Rows(run.path("ai_feedback", "pairs.jsonl"), Pair).read()[:limit]
    if not pairs:
        raise InputError(f"{run.folder} has no pairs of answers; run ai-feedback there first")
    base = load_base(run.preset)
    run.note_model(base.sha256)
    both = {one.name: by_principle(run, base, one, pairs) for one in (first, second)}
    p = np.array([lens.ensemble(own) for own in both.values()])
    sides = (p > 0.5).astype(int)
    same = sides[0] == sides[1]
    return {
        "constitutions": [first.name, second.name],
        "n": len(pairs),
        "agreement": round(float(same.mean()), 4),
        "agreement_ci": share_interval(same),
        "kappa": None if np.ptp(sides) == 0 else round(float(cohen_kappa_score(*sides)), 4),
        "parting": [_shown(pairs[i], p[:, i]) for i in _most(np.abs(p[0] - p[1]))],
        "coverage": {one.name: coverage(one, both[one.name]) for one in (first, second)},
        "torn": {
            name: [_shown(pairs[i], own[:, i]) for i in _most(lens.spread(own))]
            for name, own in both.items()
        },
    }


def by_principle(
    run: Run, base: Base, constitution: Constitution, pairs: Sequence[Pair]
) -> np.ndarray:
    """P(A is better) where one principle alone is asked, (principles, pairs)."""
    with run.progress.bar(f"labels by {constitution.name}", len(pairs)) as advance:
        found = []
        for start in range(0, len(pairs), run.preset.batch_size):
            work = [(p, constitution.comparison) for p in pairs[start:][: run.preset.batch_size]]
            labels = labellers.pointwise(base, work, run.preset.batch_size)
            found.append(labels.scores["margins"].reshape(len(work), -1, 2))
            advance(len(work))
    margins = np.concatenate(found) / judges.temperature(run, base)
    return (1 / (1 + np.exp(margins[:, :, 1] - margins[:, :, 0]))).T


def coverage(constitution: Constitution, p: np.ndarray) -> dict[str, float]:
    """Share of the pairs on which each principle has something to say, by its id."""
    fires = (np.abs(p - 0.5) > _FIRES).mean(1)
    names = [principle.id for principle in constitution.comparison]
    return {name: round(float(share), 4) for name, share in zip(names, fires, strict=True)}


def _most(values: np.ndarray) -> list[int]:
    return [int(i) for i in np.argsort(-values, kind="stable")[:_SHOWN]]


def _shown(pair: Pair, p: np.ndarray) -> dict[str, Any]:
    return {
        "prompt": pair.prompt,
        "a": pair.a,
        "b": pair.b,
        "p_a": [round(float(one), 4) for one in p],
    }
