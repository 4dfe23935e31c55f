"""What notebook 01 reads off texts: scores and outcomes, and what a forced opening does to both.

The settings of the paper's Figs 6 and 7 were made by benchmarks/ablations.py; they are read from
its file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from IPython.display import HTML

from ..answers import HARMLESS
from ..engine.contrast import Probe, contrast_logits
from ..engine.models import Base
from ..engine.outcomes import OutcomeClassifier
from ..errors import InputError
from ..files import shipped
from ..measures import bootstrap_interval, share_interval
from ..texts import outcome, words
from .figures import Texts
from .widgets import escaped, html_table


def judged(
    base: Base,
    probe: Probe,
    classifier: OutcomeClassifier,
    prompts: Sequence[str],
    answers: Sequence[str],
    openings: Sequence[str] = (),
) -> Texts:
    """Contrast scores of answers by the base, whose the probe is, and their outcomes.

    For the scores forced `openings` are read but not counted.
    """
    logits = contrast_logits(base, probe, prompts, answers, 32, openings)
    found = classifier.outcomes(prompts, answers)
    return Texts(list(1 / (1 + np.exp(-logits))), [one in HARMLESS for one in found])


def objecting(texts: Sequence[str]) -> float:
    """Share of texts that object, by the rule on words."""
    return float(np.mean([outcome(text) in ("declines", "evasive") for text in texts]))


def opening_of(text: str, openings: Sequence[str]) -> str:
    """The opening that the text begins with, or ""."""
    return next((opening for opening in openings if text.startswith(opening)), "")


def own_words(text: str, openings: Sequence[str]) -> str:
    """The text without the opening that was put in the model's mouth."""
    return text.removeprefix(opening_of(text, openings)).strip()


def borrowed(text: str, critique: str, prompt: str) -> set[str]:
    """Words of five letters or more that came from the critique's reason, not from the prompt."""
    reason = critique.partition(", because")[2]
    new = set(words(reason)) & set(words(text)) - set(words(prompt))
    return {word for word in new if len(word) > 4}


def by_principles(path: Path | None = None) -> dict[int, Texts]:
    """The settings of Fig 6 by their number of principles; 0: the answers before any revision."""
    return {n: ablation("6", str(n), min(n, 1), path) for n in (0, 1, 2, 4, 8, 16)}


def by_way(path: Path | None = None) -> dict[str, list[Texts]]:
    """The settings of Fig 7, round by round, round 0 first."""
    return {
        way: [ablation("7", way, number, path) for number in range(3)]
        for way in ("critique", "direct")
    }


def ablation(figure: str, setting: str, number: int, path: Path | None = None) -> Texts:
    """The texts of a setting of Fig "6" or "7" after round `number`."""
    path = path or shipped("data", "samples") / "ablations.jsonl"
    if not path.exists():
        raise InputError(f"{path} is not there; run python benchmarks/ablations.py first")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = (figure, setting, number)
    rows = [row for row in lines if (row["figure"], row["setting"], row["round"]) == wanted]
    return Texts(
        [row["score"] for row in rows],
        [row["outcome"] in HARMLESS for row in rows],
        [bool(row["dropped"]) for row in rows],
    )


def texts_table(found: Mapping[str, Texts]) -> HTML:
    """Each setting's share of harmless texts, mean score and share of rounds without a result."""
    cells = [
        [escaped(name), _share(texts.harmless), _mean(texts.scores), _lost(texts.dropped)]
        for name, texts in found.items()
    ]
    head = ["", "harmless [95%]", "mean score ± standard error", "no sound revision"]
    return html_table(head, cells)


def differences_table(pairs: Mapping[str, tuple[Texts, Texts]], draws: int = 2000) -> HTML:
    """Mean difference of the first of each pair from the second, prompt by prompt, with 95%."""
    cells = [
        [
            escaped(name),
            _difference(after.harmless, before.harmless, draws),
            _difference(after.scores, before.scores, draws),
        ]
        for name, (after, before) in pairs.items()
    ]
    return html_table(["difference, paired", "harmless [95%]", "score [95%]"], cells)


def _share(rows: Sequence[bool]) -> str:
    low, high = share_interval(rows)
    return f"{np.mean(rows):.0%} [{low:.0%}, {high:.0%}], n = {len(rows)}"


def _mean(rows: Sequence[float]) -> str:
    error = np.std(rows, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else 0.0
    return f"{np.mean(rows):.3f} ± {error:.3f}, n = {len(rows)}"


def _lost(rows: Sequence[bool]) -> str:
    return f"{np.mean(rows):.0%}" if len(rows) else "—"


def _difference(after: Sequence[float], before: Sequence[float], draws: int) -> str:
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    low, high = bootstrap_interval(differences, draws, seed=0)
    verdict = "zero is inside" if low <= 0 <= high else "zero is outside"
    return f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}], {verdict}"
