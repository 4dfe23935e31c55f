"""Contrast: what a small model cannot say in words is read from its hidden states.

The model answers the same red-team prompts under a principle and under its opposite; a linear probe
learns which of the two an answer looks like. No label by anyone is used, only the constitution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

from ..constitution import Principle, draw
from ..data import Prompt
from ..prompts import Messages, chat, contrast_chats
from ..records import ContrastPair, Rows, fill
from ..run import Run
from .models import Base
from .sampling import Sampling, generate
from .scoring import mean_states

_TOKENS, _TEMPERATURE = 40, 0.6
LOWEST = -10.0  # the reading of an answer that must not win


@dataclass(frozen=True)
class Probe:
    """A direction in hidden states: `weights` over standardised features, (features,)."""

    layers: tuple[int, ...]
    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    def logits(self, states: torch.Tensor) -> np.ndarray:
        """How principled each answer looks, (rows,); 0 lies between the two kinds of pair."""
        return ((states.numpy() - self.centre) / self.scale) @ self.weights

    def save(self, path: Path) -> None:
        """Write the probe as safetensors."""
        arrays = {"centre": self.centre, "scale": self.scale, "weights": self.weights}
        save_file(arrays | {"layers": np.array(self.layers)}, path)


def load_probe(path: Path) -> Probe:
    """Read a probe that `save` wrote."""
    arrays = load_file(path)
    layers = tuple(int(layer) for layer in arrays.pop("layers"))
    return Probe(layers=layers, **arrays)


def contrast_probe(run: Run, base: Base, prompts: Sequence[Prompt]) -> Probe:
    """The run's probe: loaded if it is there, else fitted on fresh contrast pairs of the base."""
    path = run.path("contrast", "probe.safetensors")
    if not path.exists():
        pairs = contrast_pairs(run, base, prompts)
        probe = fit_probe(base, pairs, run.preset.batch_size)
        partial = path.with_suffix(".tmp")
        probe.save(partial)
        partial.replace(path)
    return load_probe(path)


def contrast_pairs(run: Run, base: Base, prompts: Sequence[Prompt]) -> list[ContrastPair]:
    """One pair a prompt, its principle drawn with the run's seed; kept on disk."""
    able = [p for p in run.constitution.comparison if p.good and p.bad]
    drawn = draw(able, len(prompts), run.seed("contrast"))
    work = list(zip(prompts, drawn, strict=True))
    store = Rows(run.path("contrast", "pairs.jsonl"), ContrastPair)
    with run.progress.bar("contrast pairs", len(work)) as advance:
        return fill(
            store,
            work,
            lambda item: item[0].id,
            lambda batch: _answer_both_ways(run, base, batch),
            run.preset.batch_size,
            advance,
        )


def _answer_both_ways(
    run: Run, base: Base, work: Sequence[tuple[Prompt, Principle]]
) -> list[ContrastPair]:
    texts = []
    for prompt, principle in work:
        good, bad = contrast_chats(prompt.prompt, principle)
        texts.append(base.render(good) + base.neutral(_good_opening(run, prompt.id, principle)))
        texts.append(base.render(bad) + base.neutral(principle.bad_opening))
    seeds = [run.seed("contrast", prompt.id, side) for prompt, _ in work for side in "+-"]
    answers = generate(
        base, texts, Sampling(_TOKENS, _TEMPERATURE), seeds, on_tokens=run.progress.tokens
    )
    return [
        ContrastPair(id=prompt.id, prompt=prompt.prompt, principle=principle.id, good=good, bad=bad)
        for (prompt, principle), good, bad in zip(work, answers[::2], answers[1::2], strict=True)
    ]


def _good_opening(run: Run, prompt_id: str, principle: Principle) -> str:
    """One of the constitution's openings of revisions, which lead on to the point, else its own."""
    openings = run.constitution.revision_openings or [principle.good_opening]
    return openings[run.seed("good opening", prompt_id) % len(openings)]


def with_openings(run: Run, pair: ContrastPair) -> tuple[str, str]:
    """Both answers of a pair of this run, the good one first, as they were written: whole."""
    principle = next(p for p in run.constitution.comparison if p.id == pair.principle)
    opening = _good_opening(run, pair.id, principle)
    return (opening + pair.good).strip(), (principle.bad_opening + pair.bad).strip()


def fit_probe(base: Base, pairs: Sequence[ContrastPair], batch_size: int) -> Probe:
    """Logistic regression without intercept on the differences good − bad, and bad − good.

    The answers' openings were cut off, so the probe learns more than the opening.
    """
    layers = probe_layers(base)
    prompts = [pair.prompt for pair in pairs]
    good = answer_states(base, prompts, [pair.good for pair in pairs], layers, batch_size).numpy()
    bad = answer_states(base, prompts, [pair.bad for pair in pairs], layers, batch_size).numpy()
    centre = (good.mean(0) + bad.mean(0)) / 2
    scale = np.concatenate([good, bad]).std(0) + 1e-6
    difference = (good - bad) / scale
    signs = np.repeat([1, -1], len(pairs))
    model = LogisticRegression(C=1e-3, fit_intercept=False, max_iter=1000)
    model.fit(np.concatenate([difference, -difference]), signs)
    return Probe(layers, centre, scale, model.coef_[0].astype(np.float32))


def answer_states(
    base: Base,
    prompts: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
    openings: Sequence[str] = (),
    as_chat: Callable[[str], Messages] = chat,
) -> torch.Tensor:
    """Mean hidden states of answers as chat replies to their prompts, (rows, features).

    `openings` are what answers were made to begin with: they are read, but left out of the mean.
    `as_chat` makes the turns that come before an answer of its prompt.
    """
    rendered = [base.render(as_chat(prompt)) for prompt in prompts]
    if openings:
        rendered = [text + base.neutral(o) for text, o in zip(rendered, openings, strict=True)]
        answers = [a.removeprefix(o) for a, o in zip(answers, openings, strict=True)]
    return mean_states(base, rendered, answers, layers, batch_size)


def probe_layers(base: Base) -> tuple[int, ...]:
    """Two depths of the body, two fifths and two thirds, where the contrast is clearest."""
    depth = base.body.config.num_hidden_layers
    return (2 * depth // 5, 2 * depth // 3)


def contrast_logits(
    base: Base,
    probe: Probe,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int,
    openings: Sequence[str] = (),
) -> np.ndarray:
    """The probe's reading of each answer, (rows,); higher is more principled.

    Forced `openings` are not counted: they would speak for every answer that begins with them.
    An answer that says nothing more reads as `LOWEST`, below all others, so that it never wins.
    """
    states = answer_states(base, prompts, answers, probe.layers, batch_size, openings)
    logits = probe.logits(states)
    logits = np.maximum(logits, LOWEST + 1)
    said = [
        a.removeprefix(o) for a, o in zip(answers, openings or [""] * len(answers), strict=True)
    ]
    return np.where([not text.strip() for text in said], LOWEST, logits)
