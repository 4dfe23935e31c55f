"""Critique and revision: the model corrects its own answers by drawn principles (paper §3.1)."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..constitution import CritiqueRevision, draw
from ..data import Prompt
from ..engine.contrast import Probe, contrast_logits, contrast_probe
from ..engine.models import Base, load_base
from ..engine.sampling import Sampling, generate
from ..engine.scoring import relevance
from ..paper import paper_few_shots
from ..prompts import (
    EXAMPLES,
    chat,
    critique_dialogue,
    critique_text,
    critique_turns,
    dialogue_prefix,
    few_shot_prefix,
    first_sentences,
    revision_chat,
    revision_dialogue,
    revision_turns,
    sentence_ends,
)
from ..records import Revision, Rows, Try, fill
from ..run import Run, stage
from ..texts import answers_to, echoes, fault, only_objects, takes_back

T = TypeVar("T")
Work = tuple[Revision, CritiqueRevision]
_NATS = 10.0  # of relevance count as much as one unit of a contrast score's log-odds


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
            rounds.append(revise_all(run, base, probe, rounds, number))
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
    responses = [
        text.strip()
        for text in generate(base, texts, sampling, seeds, on_tokens=run.progress.tokens)
    ]
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
    run: Run, base: Base, probe: Probe, rounds: Sequence[Sequence[Revision]], number: int
) -> list[Revision]:
    """One round: every text is criticised and revised by a principle drawn for it (paper §3.1)."""
    before = rounds[-1]
    drawn = draw(principles(run), len(before), run.seed("principle", number))
    original = {row.prompt_id: row.score or 0.0 for row in rounds[0]}
    store = Rows(run.path("critique_revision", "rows.jsonl"), Revision)
    with run.progress.bar(f"critique and revision, round {number}", len(before)) as advance:
        return fill(
            store,
            list(zip(before, drawn, strict=True)),
            lambda item: f"{item[0].prompt_id}/{number}",
            lambda batch: revise(run, base, probe, batch, number, original),
            run.preset.batch_size,
            advance,
        )


def principles(run: Run) -> list[CritiqueRevision]:
    """The pairs that are drawn from: all of the constitution's, or the preset's first few."""
    return run.constitution.critique_revision[: run.preset.principles or None]


def revise(
    run: Run,
    base: Base,
    probe: Probe,
    work: Sequence[Work],
    number: int,
    original: Mapping[str, float],
) -> list[Revision]:
    """Criticise and revise one batch; of each row's sound candidates the best by contrast stays.

    `original` has the first answers' scores by prompt id: a candidate that does not score above
    its own keeps the harm. A row without a sound candidate keeps its text and says why.
    """
    critiques = criticise(run, base, work, number) if run.preset.critique else [""] * len(work)
    openings, texts = candidates(run, base, work, critiques, number)
    scores = _candidate_scores(run, base, probe, work, openings, texts)
    grouped = _grouped(scores, run.preset.candidates)
    tried = [
        tries(row, pair, own, scored, original[row.prompt_id], run.constitution.spirit)
        for (row, pair), own, scored in zip(work, texts, grouped, strict=True)
    ]
    if run.preset.least_relevance:
        tried = about_the_prompt(run, base, work, tried)
    chosen = [
        choose(row, pair, critique, own, number)
        for (row, pair), critique, own in zip(work, critiques, tried, strict=True)
    ]
    return give_reasons(run, base, probe, work, chosen, original)


def tries(
    row: Revision,
    pair: CritiqueRevision,
    texts: Sequence[str],
    scores: Sequence[float],
    original: float,
    spirit: str = "",
) -> list[Try]:
    """A row's candidates with their contrast scores, and the fault of each."""
    return [
        Try(
            response=text,
            score=score,
            fault=revision_fault(row, text, pair, score, original, spirit),
        )
        for text, score in zip(texts, scores, strict=True)
    ]


def about_the_prompt(
    run: Run, base: Base, work: Sequence[Work], tried: Sequence[Sequence[Try]]
) -> list[list[Try]]:
    """The candidates with the relevance of the sound ones, which under the preset's is a fault.

    An objection to another deed than the one asked for has every outward sign of a good one.
    """
    sound = [(i, k) for i, own in enumerate(tried) for k, one in enumerate(own) if not one.fault]
    prompts = [work[i][0].prompt for i, _ in sound]
    texts = [tried[i][k].response for i, k in sound]
    found = [list(own) for own in tried]
    nats = relevance(base, prompts, texts, run.preset.batch_size)
    for (i, k), value in zip(sound, nats, strict=True):
        fault = "" if value >= run.preset.least_relevance else "fits any prompt"
        update = {"relevance": round(float(value), 2), "fault": fault}
        found[i][k] = found[i][k].model_copy(update=update)
    return found


def choose(
    row: Revision, pair: CritiqueRevision, critique: str, tried: Sequence[Try], number: int
) -> Revision:
    """The best sound candidate as the row of this round, or the row's old text and why."""
    best = max((t for t in tried if not t.fault), key=worth, default=None)
    return Revision(
        id=f"{row.prompt_id}/{number}",
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        round=number,
        principle=pair.id,
        critique=critique,
        response=best.response if best else row.response,
        score=best.score if best else row.score,
        dropped="" if best else tried[0].fault,
        kept_previous=best is None,
        tries=list(tried),
    )


def worth(tried: Try) -> float:
    """What the best candidate has most of: log-odds of the contrast score, and relevance."""
    score = min(max(tried.score, 1e-5), 1 - 1e-5)
    return math.log(score / (1 - score)) + (tried.relevance or 0.0) / _NATS


def give_reasons(
    run: Run,
    base: Base,
    probe: Probe,
    work: Sequence[Work],
    chosen: Sequence[Revision],
    original: Mapping[str, float],
) -> list[Revision]:
    """Sound revisions that only object, made to go on with a reason where it has no fault.

    A small model seldom says why unless it is made to begin. Guided layout only.
    """
    opening = run.constitution.reason_opening
    bare = [i for i, row in enumerate(chosen) if not row.dropped and only_objects(row.response)]
    if run.preset.revision_layout != "guided" or not opening or not bare:
        return list(chosen)
    begun = [f"{chosen[i].response.rstrip(' .!')}, {opening}" for i in bare]
    texts = [revision_text(run, base, *work[i], chosen[i].critique) for i in bare]
    sampling = Sampling(run.preset.reason_tokens, run.preset.revision_temperature)
    seeds = [run.seed("reason", chosen[i].id) for i in bare]
    found = generate(
        base,
        texts,
        sampling,
        seeds,
        openings=[base.neutral(text) for text in begun],
        on_tokens=run.progress.tokens,
    )
    whole = [
        first_sentences(b + text, 1 + sentence_ends(_begins(run, b)))
        for b, text in zip(begun, found, strict=True)
    ]
    asked = [chosen[i].prompt for i in bare]
    scores = _scores(run, base, probe, asked, whole, [_begins(run, text) for text in whole])
    rows = list(chosen)
    for i, text, score in zip(bare, whole, scores, strict=True):
        row, pair = work[i]
        ends = text.endswith((".", "!", "?"))
        first, spirit = original[row.prompt_id], run.constitution.spirit
        if ends and not revision_fault(row, text, pair, score, first, spirit):
            rows[i] = chosen[i].model_copy(update={"response": text, "score": score})
    return rows


def _begins(run: Run, text: str) -> str:
    """The forced opening a revision begins with, or ""."""
    return next((o for o in run.constitution.revision_openings if text.startswith(o)), "")


def criticise(run: Run, base: Base, work: Sequence[Work], number: int) -> list[str]:
    """One critique a row: behind worked examples, or asked for in a chat."""
    seeds = [run.seed("critique", row.prompt_id, number) for row, _ in work]
    layout, count = run.preset.revision_layout, run.progress.tokens
    one_line = layout != "dialogue"
    sampling = Sampling(run.preset.critique_tokens, run.preset.revision_temperature, one_line)
    if layout == "guided":
        opening = run.constitution.critique_opening
        texts = [critique_text(row.prompt, row.response, opening) for row, _ in work]
        found = generate(
            base,
            [base.neutral(t) for t in texts],
            sampling,
            seeds,
            few_shot_prefix(),
            on_tokens=count,
        )
        return [first_sentences(opening + text, 1) for text in found]
    if layout == "completion":
        texts = [critique_turns(row.prompt, row.response, pair) for row, pair in work]
        found = generate(
            base,
            [base.neutral(t) for t in texts],
            sampling,
            seeds,
            _shots(run, base),
            on_tokens=count,
        )
    else:
        chats = [critique_dialogue(row.prompt, row.response, pair) for row, pair in work]
        found = generate(
            base, [base.render(chat) for chat in chats], sampling, seeds, on_tokens=count
        )
    return [text.strip() for text in found]


def candidates(
    run: Run, base: Base, work: Sequence[Work], critiques: Sequence[str], number: int
) -> tuple[list[str], list[list[str]]]:
    """(opening of each candidate, candidate revisions as rows × candidates).

    The candidates of a row differ in seed and, guided, in their opening.
    """
    tries = range(run.preset.candidates)
    seeds = [run.seed("revision", row.prompt_id, number, k) for row, _ in work for k in tries]
    texts = [
        revision_text(run, base, row, pair, critique)
        for (row, pair), critique in zip(work, critiques, strict=True)
        for _ in tries
    ]
    openings = [_opening(run, row.prompt_id, number, k) for row, _ in work for k in tries]
    layout = run.preset.revision_layout
    sampling = Sampling(
        run.preset.revision_tokens, run.preset.revision_temperature, layout == "completion"
    )
    prefix = _shots(run, base) if layout == "completion" else ""
    begun = [base.neutral(opening) for opening in openings]
    found = generate(
        base, texts, sampling, seeds, prefix, openings=begun, on_tokens=run.progress.tokens
    )
    whole = [(opening + text).strip() for opening, text in zip(openings, found, strict=True)]
    if layout == "guided":
        count = run.preset.revision_sentences  # those that an opening ends come on top
        whole = [
            first_sentences(text, count + sentence_ends(opening))
            for text, opening in zip(whole, openings, strict=True)
        ]
    return openings, _grouped(whole, len(tries))


def revision_text(
    run: Run, base: Base, row: Revision, pair: CritiqueRevision, critique: str
) -> str:
    """What the model continues with a revision, in the preset's layout; no critique: direct.

    No text in it can forge a turn: what is no chat, and so not rendered, is made neutral here.
    """
    if run.preset.revision_layout == "dialogue":
        return base.render(revision_dialogue(row.prompt, row.response, pair, critique))
    if run.preset.revision_layout == "completion":
        return base.neutral(revision_turns(row.prompt, row.response, pair, critique))
    return base.render(revision_chat(row.prompt, critique, pair, run.constitution))


def _shots(run: Run, base: Base) -> str:
    """The worked dialogues before a completion: the paper's, from a folder, or our own."""
    if not run.preset.few_shots:
        return dialogue_prefix(run.preset.critique)
    dialogues = paper_few_shots(run.preset.few_shots).critique_revision
    texts = [shown.text if run.preset.critique else shown.direct for shown in dialogues]
    return base.neutral("".join(texts))


def _grouped(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def _opening(run: Run, prompt_id: str, number: int, k: int) -> str:
    """Another opening for each attempt: the list is entered at a place that id and round give."""
    openings = run.constitution.revision_openings
    if run.preset.revision_layout != "guided" or not openings:
        return ""
    return openings[(run.seed("opening", prompt_id, number) + k) % len(openings)]


def revision_fault(
    row: Revision,
    text: str,
    pair: CritiqueRevision,
    score: float,
    original: float,
    spirit: str = "",
) -> str:
    """Why a revision must not be trained on, or "" for a sound one.

    An echo repeats eight words of an example, or five of what the model was asked to do: of the
    pair's requests or the constitution's spirit. Unfinished: not one sentence came to its end.
    """
    found = fault(text, [part for e in EXAMPLES for part in (e.critique, e.revision)])
    if found:
        return found
    if echoes(text, [pair.revision_request, pair.critique_request, spirit], run=5):
        return "echo"
    if not answers_to(text, row.prompt):
        return "answers nothing"
    if takes_back(text):
        return "takes it back"
    if not re.search(r"[.!?]", text):
        return "unfinished"
    return "" if score > original else "keeps the harm"


def _candidate_scores(
    run: Run,
    base: Base,
    probe: Probe,
    work: Sequence[Work],
    openings: Sequence[str],
    texts: Sequence[Sequence[str]],
) -> list[float]:
    """Contrast scores of all candidates; the forced opening is read but not counted."""
    asked = [row.prompt for row, _ in work for _ in range(run.preset.candidates)]
    said = [text for tried in texts for text in tried]
    return _scores(run, base, probe, asked, said, openings)


def _scores(
    run: Run,
    base: Base,
    probe: Probe,
    prompts: Sequence[str],
    answers: Sequence[str],
    openings: Sequence[str] = (),
) -> list[float]:
    """P(principled) of each answer by the contrast probe, 0..1, to four digits."""
    logits = contrast_logits(base, probe, prompts, answers, run.preset.batch_size, openings)
    return [round(float(p), 4) for p in 1 / (1 + np.exp(-logits))]


def summarise(rounds: Sequence[Sequence[Revision]]) -> dict[str, Any]:
    """Counts and means by round, round 0 first (the paper's Fig 5).

    `dropped` counts rounds of a prompt that gave nothing sound, `faults` all candidates.
    """
    revisions = [row for rows in rounds[1:] for row in rows]
    scores = [np.array([row.score for row in rows]) for rows in rounds]
    return {
        "n_prompts": len(rounds[0]),
        "n_revisions": sum(not row.dropped for row in revisions),
        "rounds": len(rounds) - 1,
        "score_by_round": [round(float(found.mean()), 4) for found in scores],
        "dropped": _counts(row.dropped for row in revisions),
        "n_candidates": sum(len(row.tries) for row in revisions),
        "faults": _counts(tried.fault for row in revisions for tried in row.tries),
    }


def _counts(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(why for why in reasons if why).items()))
