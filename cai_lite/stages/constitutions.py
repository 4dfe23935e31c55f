"""Two constitutions on the same pairs of answers: where they agree, where they part, what is idle.

The same model is asked each principle's own question about each answer (pointwise), so nothing is
trained and only the principles differ. A small model hears the principles badly (notebook 03): what
is compared is what it makes of them. What it has no words for may be in its hidden states: whether
models by two constitutions can be told apart is read there as well.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import lens
from ..constitution import Constitution
from ..engine import judges, labellers
from ..engine.contrast import answer_states, contrast_pairs
from ..engine.models import Base, load_base, role
from ..engine.reader import OWN_TEXT, Reader, fit_reader
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

    Agreement is of the two ensembles' sides: see `engine.judges.agreement`. InputError for a run
    without pairs.
    """
    pairs = Rows(run.path("ai_feedback", "pairs.jsonl"), Pair).read()[:limit]
    if not pairs:
        raise InputError(f"{run.folder} has no pairs of answers; run ai-feedback there first")
    base = load_base(run.preset)
    run.note_model(base.sha256)
    both = {one.name: by_principle(run, base, one, pairs) for one in (first, second)}
    p = np.array([lens.ensemble(own) for own in both.values()])
    return {
        "constitutions": [first.name, second.name],
        "n": len(pairs),
        **judges.agreement(*p),
        "parting": [_shown(pairs[i], p[:, i]) for i in _most(np.abs(p[0] - p[1]))],
        "coverage": {one.name: coverage(one, both[one.name]) for one in (first, second)},
        "torn": {
            name: [_shown(pairs[i], own[:, i]) for i in _most(lens.spread(own))]
            for name, own in both.items()
        },
    }


def told_apart(leads: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How often a labeller says right which of two answers is by the constitution's own model.

    `leads`, (prompts, principles), are above zero where that model's answer follows the principle
    better: see `read_leads` and `asked_leads`. The mean over principles decides; a tie counts half.
    Shares with n and Wilson's interval, of all principles together and of each alone.
    """
    return {
        "n": len(leads),
        **_right(leads.mean(1)),
        "principles": {name: _right(own) for name, own in zip(names, leads.T, strict=True)},
    }


def _right(leads: np.ndarray) -> dict[str, Any]:
    right = (np.sign(leads) + 1) / 2
    return {"right": round(float(right.mean()), 4), "ci": share_interval(right)}


def read_leads(
    base: Base,
    reader: Reader,
    prompts: Sequence[str],
    others: Sequence[str],
    followers: Sequence[str],
    batch_size: int,
) -> np.ndarray:
    """By how much each follower's answer reads more principled, (prompts, reader's principles).

    Each answer is read alone in the untouched base's hidden states, so that there is no order to
    be led by; equal answers lead by exactly 0. InputError for lists of no or different lengths.
    """
    said = _said(prompts, others, followers)
    once = list(dict.fromkeys(said))
    asked, answers = zip(*once, strict=True)
    with role(base, None):
        states = answer_states(base, asked, answers, reader.layers, batch_size)
    found = dict(zip(once, reader.logits(states), strict=True))
    other, follower = np.array([found[one] for one in said]).reshape(2, len(prompts), -1)
    return follower - other


def asked_leads(
    base: Base,
    constitution: Constitution,
    prompts: Sequence[str],
    others: Sequence[str],
    followers: Sequence[str],
    batch_size: int,
) -> np.ndarray:
    """The same by each comparison principle's question: leads of log P(Yes) − log P(No)."""
    _said(prompts, others, followers)
    pairs = [
        Pair(id=str(number), prompt=prompt, a=a, b=b)
        for number, (prompt, a, b) in enumerate(zip(prompts, others, followers, strict=True))
    ]
    with role(base, None):
        margins = _margins(base, constitution, pairs, batch_size)
    return margins[:, :, 1] - margins[:, :, 0]


def _margins(
    base: Base, constitution: Constitution, pairs: Sequence[Pair], batch_size: int
) -> np.ndarray:
    """log P(Yes) − log P(No) of both answers to each question, (pairs, principles, 2)."""
    work = [(pair, constitution.comparison) for pair in pairs]
    labels = labellers.pointwise(base, work, batch_size)
    return labels.scores["margins"].reshape(len(pairs), -1, 2)


def _said(
    prompts: Sequence[str], others: Sequence[str], followers: Sequence[str]
) -> list[tuple[str, str]]:
    """(prompt, answer) of every other's answer, then of every follower's."""
    if not prompts or not len(prompts) == len(others) == len(followers):
        found = f"{len(prompts)} prompts, {len(others)} and {len(followers)} answers"
        raise InputError(f"{found}; expected one answer of each model to every prompt")
    return [*zip(prompts, others, strict=True), *zip(prompts, followers, strict=True)]


def own_reader(run: Run, base: Base) -> Reader:
    """A reader taught by the run's contrast pairs alone: what the constitution says, and no more.

    The pairs are the start's answers to training prompts under a principle and under its opposite,
    their openings cut off; nothing of a trained model is in them.
    """
    prompts = run.prompts("red_team", "train", run.preset.contrast_prompts)
    names = [p.id for p in run.constitution.comparison if p.good and p.bad]
    with role(base, None):
        pairs = contrast_pairs(run, base, prompts)
        return fit_reader(base, pairs, names, OWN_TEXT, run.preset.batch_size)


def by_principle(
    run: Run, base: Base, constitution: Constitution, pairs: Sequence[Pair]
) -> np.ndarray:
    """P(A is better) where one principle alone is asked, (principles, pairs)."""
    with run.progress.bar(f"labels by {constitution.name}", len(pairs)) as advance:
        found = []
        for start in range(0, len(pairs), run.preset.batch_size):
            some = pairs[start : start + run.preset.batch_size]
            found.append(_margins(base, constitution, some, run.preset.batch_size))
            advance(len(some))
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
