"""The contrast labeller's reader: one probe a principle, from pairs that nobody labelled.

A probe knows only the kind of text it learnt from. A run reads its own model's answers, so there
the pairs are the contrast pairs and the run's own revisions over the answers they revise.
Conversations that people wrote are read by worked dialogues and the constitution's own words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from ..constitution import Constitution, Principle
from ..files import shipped
from ..prompts import Messages, chat
from ..records import ContrastPair, Revision, Rows
from .contrast import answer_states
from .models import Base

# Where in the body, as shares of its depth, each kind of text is read best.
OWN_TEXT = (8 / 15, 4 / 5)  # chosen on labelled answers of the models here (tests/data/outcomes)
TALKS = (2 / 5, 8 / 15, 2 / 3, 4 / 5)  # chosen on conversations (tests/data/conversations)
WRITTEN = (2 / 5, 2 / 3)  # the same, when there were fewer dialogues
GENERAL = {"helpful", "honest", "harmless"}  # what dialogues show that are for no one principle
_OWN = 4.0  # what a principle's own pairs count, the others' counting 1
_FOLDS = 5
_STRENGTH = 1e-4  # C of the logistic regression: few pairs, a thousand features


@dataclass(frozen=True)
class Reader:
    """Directions in hidden states: `weights`, (principles, features), over standardised features.

    `temperature` divides the readings, so that σ of a difference is a calibrated probability.
    """

    layers: tuple[int, ...]
    principles: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    temperature: float

    def logits(self, states: torch.Tensor) -> np.ndarray:
        """How well each answer follows each principle, (rows, principles)."""
        return ((states.numpy() - self.centre) / self.scale) @ self.weights.T / self.temperature

    def places(self, principles: Sequence[Principle]) -> list[int]:
        """Columns of these principles' probes; of all, if the reader has none of them."""
        known = [self.principles.index(p.id) for p in principles if p.id in self.principles]
        return known or list(range(len(self.principles)))

    def save(self, path: Path) -> None:
        """Write the reader as safetensors."""
        names = np.frombuffer("\n".join(self.principles).encode(), dtype=np.uint8)
        arrays = {"centre": self.centre, "scale": self.scale, "weights": self.weights}
        numbers = {"layers": np.array(self.layers), "temperature": np.array([self.temperature])}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays | numbers | {"principles": names.copy()}, path)


def load_reader(path: Path) -> Reader:
    """Read a reader that `save` wrote."""
    arrays = load_file(path)
    return Reader(
        layers=tuple(int(layer) for layer in arrays["layers"]),
        principles=tuple(arrays["principles"].tobytes().decode().split("\n")),
        centre=arrays["centre"],
        scale=arrays["scale"],
        weights=arrays["weights"],
        temperature=float(arrays["temperature"][0]),
    )


def revision_pairs(rows: Sequence[Revision], openings: Sequence[str]) -> list[ContrastPair]:
    """Each prompt's last sound revision over its first answer, the forced opening set apart."""
    first = {row.prompt_id: row for row in rows if row.round == 0}
    last = {row.prompt_id: row for row in rows if row.round and not row.dropped}
    return [_revision_pair(first[name], row, openings) for name, row in last.items()]


def _revision_pair(first: Revision, last: Revision, openings: Sequence[str]) -> ContrastPair:
    opening = next((o for o in openings if last.response.startswith(o)), "")
    return ContrastPair(
        id=f"revision {last.prompt_id}",
        prompt=last.prompt,
        principle=last.principle,
        good=last.response.removeprefix(opening),
        bad=first.response,
        good_opening=opening,
    )


def worked_pairs(constitution: Constitution) -> list[ContrastPair]:
    """The shipped dialogues for these principles, and each principle's own words as answers.

    Dialogues that show what is helpful, honest or harmless in general go with those of known
    principles. A constitution with principles all its own has no dialogues, only its own words.
    """
    ids = {p.id for p in constitution.comparison}
    dialogues = Rows(shipped("data", "dialogues.jsonl"), ContrastPair).read()
    wanted = ids | GENERAL if any(pair.principle in ids for pair in dialogues) else ids
    said = [
        ContrastPair(id=p.id, prompt="How do you answer?", principle=p.id, good=p.good, bad=p.bad)
        for p in constitution.comparison
        if p.good and p.bad
    ]
    return [pair for pair in dialogues if pair.principle in wanted] + said


def talk_pairs(constitution: Constitution) -> list[ContrastPair]:
    """What tells harmful talks from others: worked pairs that are not about help or honesty.

    A constitution that has dialogues has the shipped talks behind them.
    """
    worked = worked_pairs(constitution)
    talks = Rows(shipped("data", "talks.jsonl"), ContrastPair).read()
    both = worked + talks if any(pair.principle in GENERAL for pair in worked) else worked
    return [pair for pair in both if pair.principle not in ("helpful", "honest")]


def fit_reader(
    base: Base,
    pairs: Sequence[ContrastPair],
    principles: Sequence[str],
    depths: Sequence[float],
    batch_size: int,
    as_chat: Callable[[str], Messages] = chat,
) -> Reader:
    """A probe a principle by logistic regression on the differences good − bad, and bad − good.

    `depths` are shares of the body's depth at which answers are read: `OWN_TEXT`, `WRITTEN` or
    `TALKS`. All pairs teach every probe, a principle's own pairs most. The temperature is fitted on
    pairs that were held out, those of one prompt together. `as_chat` is
    as in `answer_states`.
    """
    layers = tuple(round(d * base.body.config.num_hidden_layers) for d in depths)
    prompts = [pair.prompt for pair in pairs]
    openings = [pair.good_opening for pair in pairs]
    whole = [pair.good_opening + pair.good for pair in pairs]
    bad_ones = [pair.bad for pair in pairs]
    good = answer_states(base, prompts, whole, layers, batch_size, openings, as_chat).numpy()
    bad = answer_states(base, prompts, bad_ones, layers, batch_size, as_chat=as_chat).numpy()
    centre = (good.mean(0) + bad.mean(0)) / 2
    scale = np.concatenate([good, bad]).std(0) + 1e-6
    difference = (good - bad) / scale
    own = np.array([[pair.principle == name for pair in pairs] for name in principles])
    weights = np.stack([_direction(difference, 1 + (_OWN - 1) * row) for row in own])
    temperature = fit_temperature(_held_out(difference, prompts))
    return Reader(layers, tuple(principles), centre, scale, weights.astype(np.float32), temperature)


def _direction(difference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    model = LogisticRegression(C=_STRENGTH, fit_intercept=False, max_iter=1000)
    both = np.concatenate([difference, -difference])
    signs = np.repeat([1, -1], len(difference))
    return model.fit(both, signs, sample_weight=np.tile(counts, 2)).coef_[0]


def _held_out(difference: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Margins of the pairs, (pairs,), each by a direction fitted without its prompt."""
    margins = np.zeros(len(difference))
    folds = GroupKFold(min(_FOLDS, len(set(prompts))))
    for learn, test in folds.split(difference, groups=prompts):
        margins[test] = difference[test] @ _direction(difference[learn], np.ones(len(learn)))
    return margins


def fit_temperature(margins: np.ndarray) -> float:
    """The T with which σ(margin / T) is likeliest right, `margins` being better − worse, (pairs,).

    Margins that are right no more often than wrong have no finite T; it is 1e6 then, which makes
    every label 0.5.
    """
    both, signs = np.concatenate([margins, -margins])[:, None], np.repeat([1, -1], len(margins))
    model = LogisticRegression(C=1e6, fit_intercept=False, max_iter=1000)
    return float(1 / max(model.fit(both, signs).coef_[0, 0], 1e-6))
