"""Elo: the likeliest strengths, their anchor, and intervals that are as sure as they say."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cai_lite.elo import POINTS, elo, strengths, wins_by_prompt
from cai_lite.errors import InputError
from cai_lite.records import Judgement


def matches(points: list[float], prompts: int, seed: int) -> np.ndarray:
    """Wins, (prompts, models, models), of models of known Elo: one match a pair and prompt."""
    strong, rng = np.array(points) / POINTS, np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(strong[None] - strong[:, None]))
    above = np.triu(rng.random((prompts, *chance.shape)) < chance, 1).astype(float)
    return above + np.tril(1 - above.transpose(0, 2, 1), -1)


def test_two_models_by_hand() -> None:
    wins = np.array([[[0.0, 1.0], [0.0, 0.0]]] * 3 + [[[0.0, 0.0], [1.0, 0.0]]])
    (a, *_), (b, *_) = elo(wins, 1, 50, 0)
    assert b == 0
    assert a == pytest.approx(POINTS * np.log(3.5 / 1.5), abs=0.1)  # 3 and 1, and a tie to begin
    assert POINTS * np.log(10) == pytest.approx(400)


def test_strengths_are_the_likeliest() -> None:
    wins = matches([-100, 0, 150, 60], 200, 1).sum(0)
    rows, won, weight = [], [], []
    for i in range(4):
        for j in range(4):
            if i != j:
                rows.append(np.eye(4)[i] - np.eye(4)[j])
                won.append(1)
                weight.append(wins[i, j] + 0.5)
    both = (np.array(rows + [-row for row in rows]), won + [0] * len(won), weight * 2)
    fitted = LogisticRegression(C=1e8, fit_intercept=False, tol=1e-8, max_iter=1000)
    expected = fitted.fit(both[0], both[1], both[2]).coef_[0]
    found = strengths(wins)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=2e-3)


def test_the_anchor_is_zero_and_a_tie_is_a_tie() -> None:
    tie = np.full((20, 3, 3), 0.5) * (1 - np.eye(3))
    assert elo(tie, 2, 100, 0) == [(0, 0, 0)] * 3
    for anchor in range(3):
        assert elo(matches([0, 50, 100], 40, 0), anchor, 100, 0)[anchor] == (0, 0, 0)


def test_who_wins_always_is_strong_and_not_infinitely_so() -> None:
    (low, *_), (high, *_) = elo(matches([0, 100_000], 80, 0), 0, 200, 0)
    assert low == 0 and 700 < high < 1000


def test_same_seed_same_interval() -> None:
    wins = matches([0, 50, 100], 40, 0)
    assert elo(wins, 0, 300, 7) == elo(wins, 0, 300, 7) != elo(wins, 0, 300, 8)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    true, held = [-80.0, 0.0, 120.0], []
    for seed in range(150):
        found = elo(matches(true, 80, seed), 1, 300, 0)
        held.append([low <= one <= high for one, (_, low, high) in zip(true, found, strict=True)])
    share = np.array(held)[:, [0, 2]].mean()  # the anchor is always right
    assert 0.90 <= share <= 0.985  # 300 of them: 95% ± 4; benchmarks/elo.py has more


def judgement(prompt: str, a: str, b: str, p_a: float) -> Judgement:
    return Judgement(id=f"{a}~{b}/{prompt}", prompt_set="red_team", prompt_id=prompt, model_a=a,
                     model_b=b, p_a=p_a, judge="embedded")  # fmt: skip


def test_judgements_are_wins_of_both_sides() -> None:
    rows = [judgement("p", "x", "y", 0.9), judgement("q", "y", "x", 0.3)]
    wins = wins_by_prompt(rows, ["x", "y"])
    np.testing.assert_allclose(wins, [[[0, 0.9], [0.1, 0]], [[0, 0.7], [0.3, 0]]])
    with pytest.raises(InputError, match="judgement 'z~x/p' is of model 'z'; expected x, y"):
        wins_by_prompt([judgement("p", "z", "x", 1)], ["x", "y"])
