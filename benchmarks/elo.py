"""How often the intervals of Elo hold the truth, on models of known strength.

    python benchmarks/elo.py [repetitions]

Three models, a match of any two on each of 80 prompts, resampled 1,000 times; with plain wins, and
with soft ones. An interval that says 95% should hold the truth in about 95 of 100 repetitions. The
last line on stdout is JSON.
"""

import json
import sys

import numpy as np

from cai_lite.elo import POINTS, elo

TRUE = (-80.0, 0.0, 120.0)
PROMPTS, DRAWS, ANCHOR = 80, 1000, 1
SPREAD = 1.0  # of a prompt's own log-odds, where wins are soft


def played(seed: int, soft: bool) -> np.ndarray:
    """Wins of any two models on each prompt, (prompts, models, models).

    Soft: the judge says a probability, drawn around the models' own, in place of a win or none.
    """
    rng, strong = np.random.default_rng(seed), np.array(TRUE) / POINTS
    chance = 1 / (1 + np.exp(strong[None] - strong[:, None]))
    if soft:
        sure = 1 / SPREAD
        above = rng.beta(sure * chance, sure * (1 - chance), size=(PROMPTS, *chance.shape))
    else:
        above = (rng.random((PROMPTS, *chance.shape)) < chance).astype(float)
    above = np.triu(above, 1)
    return above + np.tril(1 - above.transpose(0, 2, 1), -1)


def held(repetitions: int, soft: bool) -> dict[str, float]:
    """Share of the repetitions whose interval holds the truth, by the model's true Elo."""
    counts = np.zeros(len(TRUE))
    for seed in range(repetitions):
        found = elo(played(seed, soft), ANCHOR, DRAWS, seed)
        counts += [low <= one <= high for one, (_, low, high) in zip(TRUE, found, strict=True)]
    return {f"{one:+.0f}": round(n / repetitions, 3) for one, n in zip(TRUE, counts, strict=True)
            if one}  # fmt: skip


def main(repetitions: int = 1000) -> None:
    """Print the shares."""
    print(json.dumps({name: held(repetitions, name == "soft") for name in ("plain", "soft")}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
