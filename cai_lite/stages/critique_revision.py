"""Critique and revision: the model corrects its own answers by drawn principles (paper §3.1)."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ..constitution import CritiqueRevision, draw
from ..data import Prompt
from ..engine.contrast import Probe, contrast_logits, contrast_probe
from ..engine.models import Base, load_base
from ..engine.sampling import Sampling, generate
from ..prompts import (
    EXAMPLES,
    chat,
    critique_dialogue,
    critique_text,
    few_shot_prefix,
    first_sentences,
    revision_chat,
    revision_dialogue,
)
from ..records import Revision, Rows, fill
from ..run import Run, stage
from ..texts import echoes, fault, outcome, shares_a_word

T = TypeVar("T")
Work = tuple[Revision, CritiqueRevision]


def critique_revision(run: Run) -> dict[str, Any]:
    """Run the stage: answers, then rounds of critique and revision; returns its summary.

    Leaves `rows.jsonl`, one Revision a prompt and round; round 0 is the answer as it came.
    """
    with stage(run, "critique_revision") as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        prompts = run.prompts("red_team", "train", run.preset.red_team_prompts)
        contrast = run.prompts("red_team", "train", run.preset.contrast_prompts)
        probe = contrast_probe(run, base, contrast)
        rounds = [first_answers(run, base, probe, prompts)]
        for number in range(1, run.preset.rounds + 1):
            rounds.append(revise_all(run, base, probe, rounds[-1], number))
        summary |= summarise(rounds)
    return summary


def first_answers(run: Run, base: Base, probe: Probe, prompts: Sequence[Prompt]) -> list[Revision]:
    """Round 0: what the helpful start answers to red-team prompts."""
    store = Rows(run.path("critique_revision", "rows.jsonl"), Revision)
    with run.progress.bar("first answers", len(prompts)) as advance:
        return fill(
            store,
            prompts,
            lambda prompt: f"{prompt.id}/0",
            lambda batch: _answer(run, base, probe, batch),
            run.preset.batch_size,
            advance,
        )


def _answer(run: Run, base: Base, probe: Probe, prompts: Sequence[Prompt]) -> list[Revision]:
    sampling = Sampling(run.preset.response_tokens, run.preset.response_temperature)
    seeds = [run.seed("answer", prompt.id) for prompt in prompts]
    texts = [base.render(chat(prompt.prompt)) for prompt in prompts]
    responses = [text.strip() for text in generate(base, texts, sampling, seeds)]
    scores = _scores(run, base, probe, [prompt.prompt for prompt in prompts], responses)
    return [
        Revision(
            id=f"{prompt.id}/0",
            prompt_id=prompt.id,
            prompt=prompt.prompt,
            round=0,
            response=response,
            score=score,
        )
        for prompt, response, score in zip(prompts, responses, scores, strict=True)
    ]


def revise_all(
    run: Run, base: Base, probe: Probe, before: Sequence[Revision], number: int
) -> list[Revision]:
    """One round: every text is criticised and revised by a principle drawn for it (paper §3.1)."""
    drawn = draw(run.constitution.critique_revision, len(before), run.seed("principle", number))
    store = Rows(run.path("critique_revision", "rows.jsonl"), Revision)
    with run.progress.bar(f"critique and revision, round {number}", len(before)) as advance:
        return fill(
            store,
            list(zip(before, drawn, strict=True)),
            lambda item: f"{item[0].prompt_id}/{number}",
            lambda batch: revise(run, base, probe, batch, number),
            run.preset.batch_size,
            advance,
        )


def revise(run: Run, base: Base, probe: Probe, work: Sequence[Work], number: int) -> list[Revision]:
    """Criticise and revise one batch; of each row's sound candidates the best by contrast stays.

    A row without a sound candidate keeps its text and says why in `dropped`.
    """
    critiques = criticise(run, base, work, number)
    tries = candidates(run, base, work, critiques, number)
    asked = [row.prompt for row, _ in work for _ in range(run.preset.candidates)]
    scores = _scores(run, base, probe, asked, [text for texts in tries for text in texts])
    return [
        choose(row, pair, critique, texts, values, number)
        for (row, pair), critique, texts, values in zip(
            work, critiques, tries, _grouped(scores, run.preset.candidates), strict=True
        )
    ]


def choose(
    row: Revision,
    pair: CritiqueRevision,
    critique: str,
    texts: Sequence[str],
    scores: Sequence[float],
    number: int,
) -> Revision:
    """The best sound candidate as the row of this round, or the row's old text and why."""
    faults = [revision_fault(row.prompt, text, pair) for text in texts]
    sound = [k for k, found in enumerate(faults) if not found]
    best = max(sound, key=lambda k: scores[k], default=None)
    return Revision(
        id=f"{row.prompt_id}/{number}",
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        round=number,
        principle=pair.id,
        critique=critique,
        response=row.response if best is None else texts[best],
        score=row.score if best is None else scores[best],
        dropped=faults[0] if best is None else "",
        kept_previous=best is None,
    )


def criticise(run: Run, base: Base, work: Sequence[Work], number: int) -> list[str]:
    """One critique a row, guided by examples or asked for in dialogue."""
    seeds = [run.seed("critique", row.prompt_id, number) for row, _ in work]
    guided = run.preset.revision_layout == "guided"
    sampling = Sampling(run.preset.critique_tokens, run.preset.revision_temperature, guided)
    if guided:
        opening = run.constitution.critique_opening
        texts = [critique_text(row.prompt, row.response, opening) for row, _ in work]
        found = generate(base, texts, sampling, seeds, few_shot_prefix())
        return [first_sentences(opening + text, 1) for text in found]
    chats = [critique_dialogue(row.prompt, row.response, pair) for row, pair in work]
    return [t.strip() for t in generate(base, [base.render(c) for c in chats], sampling, seeds)]


def candidates(
    run: Run, base: Base, work: Sequence[Work], critiques: Sequence[str], number: int
) -> list[list[str]]:
    """Candidate revisions, rows × candidates; they differ in seed and, guided, in their opening."""
    tries = range(run.preset.candidates)
    seeds = [run.seed("revision", row.prompt_id, number, k) for row, _ in work for k in tries]
    texts, openings = [], []
    for (row, pair), critique in zip(work, critiques, strict=True):
        asked, starts = _revision_texts(run, base, row, pair, critique, number)
        texts += asked
        openings += starts
    sampling = Sampling(run.preset.revision_tokens, run.preset.revision_temperature)
    found = generate(base, texts, sampling, seeds)
    whole = [opening + text for opening, text in zip(openings, found, strict=True)]
    if run.preset.revision_layout == "guided":
        whole = [first_sentences(text) for text in whole]
    return _grouped([text.strip() for text in whole], len(tries))


def _revision_texts(
    run: Run, base: Base, row: Revision, pair: CritiqueRevision, critique: str, number: int
) -> tuple[list[str], list[str]]:
    """(texts to continue, openings they end in), one of each a candidate."""
    tries = range(run.preset.candidates)
    if run.preset.revision_layout == "dialogue":
        text = base.render(revision_dialogue(row.prompt, row.response, pair, critique))
        return [text for _ in tries], ["" for _ in tries]
    text = base.render(revision_chat(row.prompt, critique, pair, run.constitution))
    openings = [_opening(run, row.prompt_id, number + k) for k in tries]
    return [text + opening for opening in openings], openings


def _grouped(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def _opening(run: Run, prompt_id: str, turn: int) -> str:
    """Another opening for another attempt: the list is entered at a place the prompt's id gives."""
    openings = run.constitution.revision_openings or [""]
    return openings[(run.seed("opening", prompt_id) + turn) % len(openings)]


def revision_fault(prompt: str, text: str, pair: CritiqueRevision) -> str:
    """Why a revision must not be trained on: a fault of the text, or it is about something else.

    An echo repeats eight words of an example, or five of what the revision request says.
    """
    found = fault(text, [example.critique for example in EXAMPLES])
    if not found and echoes(text, [pair.revision_request], run=5):
        found = "echo"
    return found or ("" if shares_a_word(text, prompt) else "off topic")


def _scores(
    run: Run, base: Base, probe: Probe, prompts: Sequence[str], answers: Sequence[str]
) -> list[float]:
    """P(principled) of each answer by the contrast probe, 0..1, to four digits."""
    logits = contrast_logits(base, probe, prompts, answers, run.preset.batch_size)
    return [round(float(p), 4) for p in 1 / (1 + np.exp(-logits))]


def summarise(rounds: Sequence[Sequence[Revision]]) -> dict[str, Any]:
    """Counts and means by round, round 0 first (the paper's Fig 5)."""
    revisions = [row for rows in rounds[1:] for row in rows]
    dropped = [row.dropped for row in revisions if row.dropped]
    outcomes = [[outcome(row.response) for row in rows] for rows in rounds]
    objecting = [sum(o in ("declines", "evasive") for o in found) for found in outcomes]
    return {
        "n_prompts": len(rounds[0]),
        "n_revisions": len(revisions) - len(dropped),
        "rounds": len(rounds) - 1,
        "score_by_round": [round(float(np.mean([r.score for r in rows])), 4) for rows in rounds],
        "objects_by_round": [round(n / len(rounds[0]), 4) for n in objecting],
        "dropped": {why: dropped.count(why) for why in sorted(set(dropped))},
    }
