"""AI feedback: the model says by principles which of two answers is better (paper §4.1).

Three labellers give the same soft label P(A is better): *multiple choice* asks in the paper's
layout, in both orders; *pointwise* asks a yes-or-no question about each answer; *contrast* reads
the hidden states. At 135M parameters only the last says more than a coin (see notebook 03).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..constitution import Principle, draw
from ..data import Prompt
from ..engine import labellers
from ..engine.contrast import contrast_probe
from ..engine.labellers import Labels, Work
from ..engine.models import Base, add_adapter, load_base, role
from ..engine.sampling import Sampling, generate
from ..prompts import chat
from ..records import Comparison, Pair, Rows, fill
from ..run import Run, stage

Labeller = Callable[[Run, Base, Sequence[Work]], list[Comparison]]


def ai_feedback(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder whose SL-CAI is finished; returns its summary.

    Leaves `pairs.jsonl` (samples of SL-CAI) and `comparisons.jsonl` (with soft labels).
    """
    with stage(run, "ai_feedback", after=("sl_cai",)) as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        add_adapter(base, run.path("sl_cai", "adapter"), "sl_cai")
        pairs = sample_pairs(run, base)
        with role(base, None):  # the feedback model is the start, not SL-CAI (paper §4.1)
            comparisons = label_all(run, base, pairs)
            bias = position_bias(run, base, pairs[: run.preset.bias_pairs])
        p_a = np.array([comparison.p_a for comparison in comparisons])
        summary |= {
            "n_pairs": len(comparisons),
            "n_same": len(pairs) - len(comparisons),
            "method": run.preset.labeller,
            "position_bias": bias,
            "confidence": round(float(np.abs(p_a - 0.5).mean() + 0.5), 4),
        }
    return summary


def sample_pairs(run: Run, base: Base) -> list[Pair]:
    """Two samples of SL-CAI for each red-team prompt (paper §4.1)."""
    prompts = run.prompts("red_team", "train", run.preset.feedback_prompts)
    store = Rows(run.path("ai_feedback", "pairs.jsonl"), Pair)
    with run.progress.bar("pairs of answers", len(prompts)) as advance, role(base, "sl_cai"):
        return fill(
            store,
            prompts,
            lambda prompt: prompt.id,
            lambda batch: _sample(run, base, batch),
            run.preset.batch_size,
            advance,
        )


def _sample(run: Run, base: Base, prompts: Sequence[Prompt]) -> list[Pair]:
    sampling = Sampling(run.preset.response_tokens, run.preset.feedback_temperature)
    texts = [base.render(chat(prompt.prompt)) for prompt in prompts for _ in "ab"]
    seeds = [run.seed("pair", prompt.id, side) for prompt in prompts for side in "ab"]
    answers = [
        text.strip()
        for text in generate(base, texts, sampling, seeds, on_tokens=run.progress.tokens)
    ]
    return [
        Pair(id=prompt.id, prompt=prompt.prompt, a=a, b=b)
        for prompt, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)
    ]


def label_all(run: Run, base: Base, pairs: Sequence[Pair]) -> list[Comparison]:
    """Label every pair whose two answers differ, by the preset's labeller."""
    labeller = LABELLERS[run.preset.labeller]
    different = [pair for pair in pairs if pair.a != pair.b]
    work = [(pair, principles_for(run, pair)) for pair in different]
    store = Rows(run.path("ai_feedback", "comparisons.jsonl"), Comparison)
    with run.progress.bar("AI labels", len(work)) as advance:
        return fill(
            store,
            work,
            lambda item: item[0].id,
            lambda batch: labeller(run, base, batch),
            run.preset.batch_size,
            advance,
        )


def principles_for(run: Run, pair: Pair) -> list[Principle]:
    """The principles drawn for one pair, with the run's seed."""
    seed = run.seed("comparison", pair.id)
    return draw(run.constitution.comparison, run.preset.principles_per_pair, seed)


def by_multiple_choice(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by the paper's multiple choice, asked in both orders."""
    labels = labellers.multiple_choice(base, work, run.preset.batch_size)
    return _comparisons(work, labels, "multiple_choice")


def by_pointwise(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by each principle's question about one answer at a time."""
    return _comparisons(work, labellers.pointwise(base, work, run.preset.batch_size), "pointwise")


def by_contrast(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by the run's contrast probe; a loop or silence never wins."""
    prompts = run.prompts("red_team", "train", run.preset.contrast_prompts)
    probe = contrast_probe(run, base, prompts)
    labels = labellers.contrast(base, probe, work, run.preset.batch_size)
    return _comparisons(work, labels, "contrast")


LABELLERS: dict[str, Labeller] = {
    "multiple_choice": by_multiple_choice,
    "pointwise": by_pointwise,
    "contrast": by_contrast,
}


def _comparisons(work: Sequence[Work], labels: Labels, method: str) -> list[Comparison]:
    return [
        Comparison(
            id=pair.id,
            prompt=pair.prompt,
            a=pair.a,
            b=pair.b,
            p_a=round(float(labels.p_a[i]), 6),
            method=method,
            principles=[principle.id for principle in principles],
            scores={
                name: [round(float(x), 4) for x in rows[i]] for name, rows in labels.scores.items()
            },
        )
        for i, (pair, principles) in enumerate(work)
    ]


def position_bias(run: Run, base: Base, pairs: Sequence[Pair]) -> float:
    """Mean P("A") of multiple choice over both orders: 0.5 without bias, 1 if always the first."""
    work = [(pair, principles_for(run, pair)) for pair in pairs]
    rows = by_multiple_choice(run, base, work)
    return round(float(np.mean([row.scores["p_first"] for row in rows])), 4)
