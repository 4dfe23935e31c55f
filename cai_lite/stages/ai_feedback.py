"""AI feedback: the model says by principles which of two answers is better (paper §4.1).

Five labellers give the same soft label P(A is better): *multiple choice* asks in the paper's
layout, in both orders; *chain of thought* argues first; *pointwise* asks a yes-or-no question about
each answer; *contrast* reads the hidden states; *mixed* weighs the last two. What each is worth on
a model, notebook 03 and `cai-lite hhh` measure; the preset names the one whose labels are used.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..constitution import Principle, draw
from ..data import Prompt
from ..engine import labellers
from ..engine.judges import GENERAL, put_on_labeller, reader, temperature
from ..engine.labellers import Labels, Work
from ..engine.models import Base, add_adapter, load_base, role
from ..engine.pairs import spoilt
from ..engine.sampling import Sampling, generate
from ..prompts import chat
from ..records import (
    Comparison,
    HelpfulAnswer,
    Pair,
    Rows,
    fill,
    known_comparison,
)
from ..run import Run, stage
from ..texts import alike

Labeller = Callable[[Run, Base, Sequence[Work]], list[Comparison]]
_JUDGED = 0.5  # at least this share of the pairs to train on is judged
_SPOILT = 3  # one in so many helpfulness comparisons has a spoilt answer, not an objection
_REDRAWS = 3  # of an answer that is too much like the pair's other


def ai_feedback(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder whose SL-CAI is finished; returns its summary.

    Leaves `pairs.jsonl` (samples of SL-CAI), `comparisons.jsonl` (with soft labels) and, if the
    preset mixes them in, `helpful.jsonl` (comparisons on harmless prompts, which need no judge).
    """
    with stage(run, "ai_feedback", after=("sl_cai",)) as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        add_adapter(base, run.path("sl_cai", "adapter"), "sl_cai")
        pairs = sample_pairs(run, base)
        with role(base, put_on_labeller(run, base)):  # the start, not SL-CAI (paper §4.1)
            comparisons = label_all(run, base, pairs)
            bias = position_bias(run, base, pairs[: run.preset.bias_pairs])
        helpful = helpful_pairs(run, base)
        p_a = np.array([comparison.p_a for comparison in comparisons])
        summary |= {
            "n_pairs": len(comparisons),
            "n_redrawn": sum(pair.redrawn for pair in pairs),
            "n_alike": sum(alike(pair.a, pair.b) for pair in pairs),
            "n_helpful": len(helpful),
            "n_no_label": sum(not alike(p.a, p.b) for p in pairs) - len(comparisons),
            "method": run.preset.labeller,
            "position_bias": bias,
            "confidence": round(float(np.abs(p_a - 0.5).mean() + 0.5), 4),
        }
    return summary


def sample_pairs(run: Run, base: Base) -> list[Pair]:
    """Two samples of SL-CAI for each red-team prompt (paper §4.1).

    A second sample that is too much like the first is drawn again, and how often is noted.
    """
    prompts = run.prompts("red_team", "train", run.preset.feedback_prompts)
    store = Rows(run.path("ai_feedback", "pairs.jsonl"), Pair)
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    with run.progress.bar("pairs of answers", len(prompts)) as advance, role(base, "sl_cai"):
        return fill(
            store,
            prompts,
            lambda prompt: prompt.id,
            lambda batch: _sample(run, base, batch, [places[prompt.id] for prompt in batch]),
            run.preset.batch_size,
            advance,
        )


def _sample(run: Run, base: Base, prompts: Sequence[Prompt], places: Sequence[int]) -> list[Pair]:
    rows = [
        (prompt, side, place)
        for prompt, place in zip(prompts, places, strict=True)
        for side in "ab"
    ]
    answers = _answers(run, base, rows, 0)
    pairs = [
        Pair(id=prompt.id, prompt=prompt.prompt, a=a, b=b)
        for prompt, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)
    ]
    for attempt in range(1, _REDRAWS + 1):
        again = [i for i, pair in enumerate(pairs) if alike(pair.a, pair.b)]
        fresh = _answers(run, base, [(prompts[i], "b", places[i]) for i in again], attempt)
        for i, b in zip(again, fresh, strict=True):
            pairs[i] = pairs[i].model_copy(update={"b": b, "redrawn": attempt})
    return pairs


def _answers(
    run: Run, base: Base, rows: Sequence[tuple[Prompt, str, int]], attempt: int
) -> list[str]:
    """SL-CAI's answers, (rows,), each at its pair's and side's turn of the temperatures."""
    warm = run.preset.feedback_temperatures
    turns = [warm[(place + (side == "b")) % len(warm)] for _, side, place in rows]
    found = [""] * len(rows)
    for heat in sorted(set(turns)):
        own = [i for i, turn in enumerate(turns) if turn == heat]
        texts = [base.render(chat(rows[i][0].prompt)) for i in own]
        seeds = [_pair_seed(run, rows[i], attempt) for i in own]
        sampling = Sampling(run.preset.response_tokens, heat)
        written = generate(base, texts, sampling, seeds, on_tokens=run.progress.tokens)
        for i, text in zip(own, written, strict=True):
            found[i] = text.strip()
    return found


def _pair_seed(run: Run, row: tuple[Prompt, str, int], attempt: int) -> int:
    prompt, side, _ = row
    return run.seed("pair", prompt.id, side, *([attempt] if attempt else []))


def helpful_pairs(run: Run, base: Base) -> list[Comparison]:
    """Helpfulness comparisons: the start's sound answer over what does not help at all.

    The paper's come from people (§4.1). Here the worse answer is made to be worse: SL-CAI's own
    objection, its opening forced, to a prompt that asks for no harm; for every third prompt an
    answer that is `spoilt`. As many as make `pm_helpful_share` beside the judged pairs, or more.
    """
    share = run.preset.pm_helpful_share
    sound = Rows(run.path("sl_cai", "answers.jsonl"), HelpfulAnswer).read()
    sound = [row for row in sound if not row.dropped]
    sound = sound[: round(run.preset.feedback_prompts * share / _JUDGED)]
    store = Rows(run.path("ai_feedback", "helpful.jsonl"), Comparison)
    with run.progress.bar("helpfulness comparisons", len(sound)) as advance:
        return fill(
            store,
            list(enumerate(sound)),
            lambda item: item[1].id,
            lambda batch: _helpful_pairs(run, base, batch),
            run.preset.batch_size,
            advance,
        )


def _helpful_pairs(
    run: Run, base: Base, work: Sequence[tuple[int, HelpfulAnswer]]
) -> list[Comparison]:
    objections = objections_to(run, base, [row for n, row in work if n % _SPOILT])
    found = []
    for number, row in work:
        kind, worse = spoilt(row.prompt, row.response, number // _SPOILT)
        if row.id in objections:
            kind, worse = "objection", objections[row.id]
        side = run.seed("side", row.id) % 2 == 0
        method = f"answer over {kind}"
        pair = known_comparison(row.id, row.prompt, row.response, worse, method, better_is_a=side)
        found.append(pair)
    return found


def objections_to(run: Run, base: Base, rows: Sequence[HelpfulAnswer]) -> dict[str, str]:
    """SL-CAI's objection to each prompt, by id; none where the constitution forces no opening."""
    openings = run.constitution.revision_openings
    if not openings:
        return {}
    begun = [openings[run.seed("objection", row.id) % len(openings)] for row in rows]
    texts = [base.render(chat(row.prompt)) for row in rows]
    seeds = [run.seed("objection", row.id) for row in rows]
    sampling = Sampling(run.preset.revision_tokens, run.preset.revision_temperature)
    with role(base, "sl_cai"):
        said = generate(base, texts, sampling, seeds, openings=[base.neutral(o) for o in begun])
    return {
        row.id: (opening + text).strip()
        for row, opening, text in zip(rows, begun, said, strict=True)
    }


def label_all(run: Run, base: Base, pairs: Sequence[Pair]) -> list[Comparison]:
    """Label pairs of unlike answers by the preset's labeller; those that get no label are out."""
    labeller = LABELLERS[run.preset.labeller]
    unlike = [pair for pair in pairs if not alike(pair.a, pair.b)]
    work = [(pair, principles_for(run, pair)) for pair in unlike]
    store = Rows(run.path("ai_feedback", "comparisons.jsonl"), Comparison)
    with run.progress.bar("AI labels", len(work)) as advance:
        return fill(
            store,
            work,
            lambda item: item[0].id,
            lambda batch: labeller(run, base, batch),
            run.preset.batch_size,
            advance,
            may_lack=True,
        )


def principles_for(run: Run, pair: Pair) -> list[Principle]:
    """The principles drawn for one pair, with the run's seed."""
    seed = run.seed("comparison", pair.id)
    return draw(run.constitution.comparison, run.preset.principles_per_pair, seed)


def by_multiple_choice(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by the paper's multiple choice, asked in both orders."""
    preset = run.preset
    labels = labellers.multiple_choice(base, work, preset.batch_size, preset.label_few_shots)
    return _comparisons(work, labels, "multiple_choice")


def by_chain_of_thought(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons argued first; those whose verdicts cannot be read are left out."""
    p = run.preset
    seeds = [[run.seed("thought", pair.id, n) for n in range(p.thoughts)] for pair, _ in work]
    sampling = Sampling(p.thought_tokens, p.thought_temperature)
    clamp = (0.5 - p.thought_clamp, 0.5 + p.thought_clamp)
    labels = labellers.chain_of_thought(base, work, p.batch_size, seeds, sampling, clamp)
    return _comparisons(work, labels, "chain_of_thought")


def by_pointwise(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by each principle's question about one answer at a time."""
    return _comparisons(work, _pointwise(run, base, work), "pointwise")


def _pointwise(run: Run, base: Base, work: Sequence[Work]) -> Labels:
    size, few_shots = run.preset.batch_size, run.preset.label_few_shots
    return labellers.pointwise(base, work, size, temperature(run, base), few_shots)


def by_contrast(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by the run's reader of hidden states."""
    return _comparisons(work, _contrast(run, base, work), "contrast")


def _contrast(run: Run, base: Base, work: Sequence[Work]) -> Labels:
    return labellers.contrast(base, reader(run, base), work, run.preset.batch_size)


def by_mixed(run: Run, base: Base, work: Sequence[Work]) -> list[Comparison]:
    """Comparisons by contrast and by pointwise's general question, weighed as the preset says."""
    asked = _pointwise(run, base, [(pair, [GENERAL]) for pair, _ in work])
    labels = labellers.mixed(_contrast(run, base, work), asked, run.preset.mixed_weight)
    return _comparisons(work, labels, "mixed")


LABELLERS: dict[str, Labeller] = {
    "multiple_choice": by_multiple_choice,
    "chain_of_thought": by_chain_of_thought,
    "pointwise": by_pointwise,
    "contrast": by_contrast,
    "mixed": by_mixed,
}


def _comparisons(work: Sequence[Work], labels: Labels, method: str) -> list[Comparison]:
    """Rows of the pairs that have a label."""
    return [
        Comparison(
            **pair.model_dump(),
            p_a=round(float(labels.p_a[i]), 6),
            method=method,
            principles=[principle.id for principle in principles],
            scores={name: [_number(x) for x in rows[i]] for name, rows in labels.scores.items()},
            thoughts=labels.thoughts[i] if labels.thoughts else [],
        )
        for i, (pair, principles) in enumerate(work)
        if not math.isnan(labels.p_a[i])
    ]


def _number(x: float) -> float | None:
    return None if math.isnan(x) else round(float(x), 4)


def position_bias(run: Run, base: Base, pairs: Sequence[Pair]) -> float:
    """Mean P("A") of multiple choice over both orders: 0.5 without bias, 1 if always the first."""
    work = [(pair, principles_for(run, pair)) for pair in pairs]
    rows = by_multiple_choice(run, base, work)
    return round(float(np.mean(np.array([row.scores["p_first"] for row in rows], dtype=float))), 4)
