"""The comparisons that are learnt from, judged or made, and which of them are held out."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..records import Comparison, ContrastPair, Revision, Rows, Try, known_comparison
from ..run import Run
from ..texts import words
from .contrast import with_openings

_LEAST = 4  # pairs, of which one is held out


def comparisons(run: Run) -> list[Comparison]:
    """The labels to learn: those the preset names, as a person's, else the run's AI feedback."""
    named = run.preset.pm_labels
    path = Path(named) if named else run.path("ai_feedback", "comparisons.jsonl")
    rows = Rows(path, Comparison).read()
    if len(rows) < _LEAST:
        raise InputError(f"{path} has {len(rows)} labelled pairs; expected {_LEAST} or more")
    return rows


def unjudged(run: Run, judged: int) -> dict[str, list[Comparison]]:
    """Comparisons that need no judge, by kind, at the preset's shares beside the judged ones.

    As many as make each kind's share of the training pairs, and those held out; fewer if there are
    fewer. Kinds without a share are left out.
    """
    p = run.preset
    shares = {
        "helpful": p.pm_helpful_share,
        "dropped": p.pm_dropped_share,
        "spoilt": p.pm_spoilt_share,
        "swapped": p.pm_swapped_share,
        "revision": p.pm_revision_share,
        "contrast": p.pm_contrast_share,
    }
    trained = judged / (1 - sum(shares.values()))
    counts = {
        name: round(share * trained / (1 - p.pm_eval_share)) for name, share in shares.items()
    }
    found = {name: MADE[name](run)[:count] for name, count in counts.items() if count}
    return {name: rows for name, rows in found.items() if len(rows) >= _LEAST}


def spoilt(prompt: str, answer: str, number: int) -> tuple[str, str]:
    """(what it is, text) of an answer that is none: in turns, by the number, one of four kinds.

    The answer gone round in circles (every second), the prompt given back, silence, one word over
    and over. Filters and labellers have rules against them; a reward has to learn that they are
    worth nothing.
    """
    if number % 2 == 0:
        return "loop", going_round(answer, number)
    others = (("echo", prompt), ("silence", ""), ("one word", one_word(answer, number)))
    return others[number // 2 % 3]


def going_round(answer: str, number: int) -> str:
    """An answer that gets no further, as small models' do: its last words over and over."""
    said = answer.split()[: 8 + number % 9]
    again = " ".join(said[-(4 + number % 5) :]).rstrip(".,;:!?")
    joined = (" ", ", and ", ". ")[number // 2 % 3]
    return joined.join([" ".join(said).rstrip(".,;:!?"), *[again] * 4])


def one_word(answer: str, number: int) -> str:
    """One of an answer's words eight times or more: "no, no, no, …"."""
    said = words(answer) or ["no"]
    return (", " if number % 4 == 1 else " ").join([said[number % len(said)]] * (8 + number % 9))


def _dropped(run: Run) -> list[Comparison]:
    """A sound revision over another try at it that a filter dropped, the rarer faults first."""
    faulty: dict[str, list[Try]] = defaultdict(list)
    for row in Rows(run.path("critique_revision", "rows.jsonl"), Revision).read():
        faulty[row.prompt_id] += [one for one in row.tries if one.fault]
    common = Counter(one.fault for tries in faulty.values() for one in tries)
    found, used = [], Counter[str]()
    for row in (row for row in _sound(run) if faulty[row.prompt_id]):
        worse = min(faulty[row.prompt_id], key=lambda one: (used[one.fault], common[one.fault]))
        used[worse.fault] += 1
        found.append(_over(run, row, row.response, worse.response, f"over {worse.fault}"))
    return found


def _spoilt(run: Run) -> list[Comparison]:
    """A sound revision over what is left of it when it is spoilt, on red-team prompts."""
    found = []
    for number, row in enumerate(reversed(_sound(run))):  # `_dropped` begins at the other end
        kind, worse = spoilt(row.prompt, row.response, number)
        found.append(_over(run, row, row.response, worse, f"over {kind}"))
    return found


def _swapped(run: Run) -> list[Comparison]:
    """A sound revision over another prompt's: as well said, but about another deed."""
    rows = _sound(run)
    return [
        _over(run, row, row.response, other.response, "over another's")
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]


def _helpful(run: Run) -> list[Comparison]:
    return Rows(run.path("ai_feedback", "helpful.jsonl"), Comparison).read()


def _sound(run: Run) -> list[Revision]:
    """The sound revisions of the last round."""
    rows = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
    return [row for row in rows if row.round == run.preset.rounds and not row.dropped]


def _revisions(run: Run) -> list[Comparison]:
    """A sound revision over the answer it revises."""
    rows = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
    first = {row.prompt_id: row.response for row in rows if row.round == 0}
    return [_over(run, r, r.response, first[r.prompt_id], "revision") for r in _sound(run)]


def _contrast(run: Run) -> list[Comparison]:
    """An answer under a principle over one under its opposite, both with their openings."""
    rows = Rows(run.path("contrast", "pairs.jsonl"), ContrastPair).read()
    return [_over(run, row, *with_openings(run, row), "contrast pair") for row in rows]


def _over(
    run: Run, row: Revision | ContrastPair, better: str, worse: str, method: str
) -> Comparison:
    """A pair whose better answer is known, which is A in half of them."""
    return known_comparison(
        row.id, row.prompt, better, worse, method, better_is_a=run.seed("side", row.id) % 2 == 0
    )


# what makes the pairs of each kind that no judge labels, as many as the run has
MADE = {
    "helpful": _helpful,
    "dropped": _dropped,
    "spoilt": _spoilt,
    "swapped": _swapped,
    "revision": _revisions,
    "contrast": _contrast,
}


def split(run: Run, rows: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """(training, held out): the rows whose seeded numbers are smallest are held out."""
    order = sorted(rows, key=lambda row: run.seed("held out", row.id))
    held_out = max(1, round(run.preset.pm_eval_share * len(rows)))
    return order[held_out:], order[:held_out]
