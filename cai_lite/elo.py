"""Elo: how strong models are, from which of two answers was better (paper §4, Figs 2, 3 and 8).

Bradley and Terry: model i beats model j with probability σ(θ_i − θ_j). One unit of θ is 174 points,
as on the paper's scale (logistic, base 10, 400); only differences mean something, so one model is
set to 0.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from .errors import InputError
from .records import Answer, Judgement, Pair

POINTS = 400 / math.log(10)
_STEPS = 200
_DRAW = 0.5  # wins that each side of a pair begins with, so that none is infinitely strong


def elo(wins: np.ndarray, anchor: int, draws: int, seed: int) -> list[tuple[float, float, float]]:
    """(Elo, low, high) of each model, 95% by resampling prompts; `anchor` is the model set to 0.

    `wins`, (prompts, models, models), says how much of a win the row's model had over the column's
    on each prompt, 0..1; a tie is a half for both. All answers to a prompt are resampled together.
    """
    picks = np.random.default_rng(seed).multinomial(
        len(wins), np.full(len(wins), 1 / len(wins)), size=draws
    )
    resampled = np.tensordot(picks.astype(float), wins, 1)
    points = strengths(np.concatenate([wins.sum(0)[None], resampled])) * POINTS
    points -= points[:, [anchor]]
    low, high = np.quantile(points[1:], [0.025, 0.975], axis=0)
    return [
        (round(float(one), 1), round(float(bottom), 1), round(float(top), 1))
        for one, bottom, top in zip(points[0], low, high, strict=True)
    ]


def strengths(wins: np.ndarray) -> np.ndarray:
    """θ of the likeliest Bradley-Terry models, (..., models), from wins, (..., models, models).

    By minorisation-maximisation (Hunter 2004): θ's exponentials are the wins over the matches,
    each weighed by how strong both are, again and again. Every pair begins with a tie.
    """
    models = wins.shape[-1]
    wins = wins + _DRAW * (1 - np.eye(models))
    matches = wins + np.swapaxes(wins, -1, -2)
    strength = np.ones(wins.shape[:-1])
    for _ in range(_STEPS):
        both = strength[..., :, None] + strength[..., None, :]
        strength = wins.sum(-1) / (matches / both).sum(-1)
        strength /= np.exp(np.log(strength).mean(-1, keepdims=True))
    return np.log(strength)


def wins_by_prompt(judgements: Sequence[Judgement], models: Sequence[str]) -> np.ndarray:
    """Who had how much of a win over whom, (prompts, models, models), as `elo` wants it.

    Raises InputError for a judgement of a model that is not among `models`.
    """
    prompts = {name: i for i, name in enumerate(dict.fromkeys(j.prompt_id for j in judgements))}
    found = np.zeros((len(prompts), len(models), len(models)))
    for judged in judgements:
        unknown = {judged.model_a, judged.model_b} - set(models)
        if unknown:
            raise InputError(
                f"judgement {judged.id!r} is of model {unknown.pop()!r}; expected "
                f"{', '.join(models)}"
            )
        a, b = models.index(judged.model_a), models.index(judged.model_b)
        found[prompts[judged.prompt_id], a, b] += judged.p_a
        found[prompts[judged.prompt_id], b, a] += 1 - judged.p_a
    return found


def matches(
    answers: Mapping[str, Sequence[Answer]], prompt_set: str
) -> list[tuple[Answer, Answer]]:
    """Any two models' answers to each prompt of a set; `answers` has each model's, in one order."""
    own = ([row for row in rows if row.prompt_set == prompt_set] for rows in answers.values())
    return [pair for rows in zip(*own, strict=True) for pair in combinations(rows, 2)]


def as_pair(a: Answer, b: Answer) -> Pair:
    """Two models' answers to a prompt without their models' names, as a blind judge reads them."""
    return Pair(id=_match_id(a, b), prompt=a.prompt, a=a.response, b=b.response)


def _match_id(a: Answer, b: Answer) -> str:
    return f"{a.model}~{b.model}/{a.prompt_id}"


def judgement(a: Answer, b: Answer, p_a: float, judge: str) -> Judgement:
    """What a judge said of two models' answers to a prompt."""
    return Judgement(
        id=_match_id(a, b),
        prompt_set=a.prompt_set,
        prompt_id=a.prompt_id,
        model_a=a.model,
        model_b=b.model,
        p_a=round(float(p_a), 6),
        judge=judge,
    )


def rating(
    judgements: Sequence[Judgement], models: Sequence[str], anchor: str, draws: int, seed: int
) -> dict[str, Any]:
    """Who judged, on how many prompts, and each model's [Elo, low, high], the anchor's being 0."""
    wins = wins_by_prompt(judgements, models)
    points = elo(wins, models.index(anchor), draws, seed)
    return {
        "judge": judgements[0].judge,
        "n": len(wins),
        "models": {model: list(one) for model, one in zip(models, points, strict=True)},
    }
