"""Who says which of two models' answers is better, and with which of the run's own instruments.

The embedded judge is the untouched base as *mixed* labeller: it shares weights, and with the usual
labels principles too, with what the models were trained on. A report has to say so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from ..constitution import Principle
from ..errors import InputError
from ..measures import share_interval
from ..paper import HHH_FILE, HHHRow, load_hhh, paper_file, paper_folder
from ..records import Pair, Revision, Rows, read_json, write_json
from ..run import Run
from . import labellers
from .contrast import contrast_pairs
from .labellers import QUESTION
from .models import Base, add_adapter
from .reader import OWN_TEXT, Reader, fit_reader, load_reader, revision_pairs, worked_pairs

_HHH_EVERY = 3  # so many rows are one: 146 of 438, which take minutes on a CPU
_HHH_BATCH = 8  # conversations here are long
_FITTED = 100  # worked pairs that fit pointwise's temperature
GENERAL = Principle(id="general", principle=QUESTION, question=QUESTION)


def embedded(run: Run, base: Base, pairs: Sequence[Pair]) -> np.ndarray:
    """P(A is better) of each pair, (pairs,), by all of the reader's principles and the question.

    Each answer is read alone, so that the order of a pair means nothing.
    """
    work = [(pair, [GENERAL]) for pair in pairs]
    size = run.preset.batch_size
    read = labellers.contrast(base, reader(run, base), work, size)
    asked = labellers.pointwise(base, work, size, temperature(run, base))
    return labellers.mixed(read, asked, run.preset.mixed_weight).p_a


def put_on_labeller(run: Run, base: Base) -> str | None:
    """The role that labels: the run's adapter `feedback_model`, put on, else None, the base alone.

    A run has that adapter where the improved model of another one labels for it.
    """
    folder = run.path("feedback_model", "adapter")
    if not folder.exists():
        return None
    add_adapter(base, folder, "feedback_model")
    return "feedback_model"


def reader(run: Run, base: Base) -> Reader:
    """The run's reader: loaded if it is there, else fitted on contrast pairs and revisions."""
    path = run.path("ai_feedback", "reader.safetensors")
    if not path.exists():
        prompts = run.prompts("red_team", "train", run.preset.contrast_prompts)
        rows = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
        pairs = contrast_pairs(run, base, prompts)
        pairs += revision_pairs(rows, run.constitution.revision_openings)
        names = [p.id for p in run.constitution.comparison if p.good and p.bad]
        partial = path.with_suffix(".tmp")
        fit_reader(base, pairs, names, OWN_TEXT, run.preset.batch_size).save(partial)
        partial.replace(path)
    return load_reader(path)


def temperature(run: Run, base: Base) -> float:
    """Pointwise's temperature: as noted in the run, else fitted on the shipped dialogues."""
    path = run.path("ai_feedback", "temperature.json")
    if not path.exists():
        pairs = worked_pairs(run.constitution)
        pairs = pairs[:: max(1, len(pairs) // _FITTED)]
        write_json(path, labellers.pointwise_temperature(base, pairs, run.preset.batch_size))
    return float(read_json(path))


def hhh_accuracy(run: Run, judge: Callable[[Sequence[Pair]], np.ndarray]) -> dict[str, Any] | None:
    """How often a judge's P(A), (pairs,), picks what people picked in every third HHH comparison.

    A tie counts half; a pair that the judge has no P(A) of (nan) is left out and counted. None
    where the paper's file is not on this machine.
    """
    rows = _hhh_rows()
    if rows is None:
        return None
    pairs = [hhh_pair(number, row) for number, row in enumerate(rows)]
    p_a = np.full(len(pairs), np.nan)
    by_length = sorted(range(len(pairs)), key=lambda i: len(pairs[i].prompt))
    with run.progress.bar("the judge on HHH", len(pairs)) as advance:
        for start in range(0, len(pairs), _HHH_BATCH):
            places = by_length[start : start + _HHH_BATCH]
            p_a[places] = judge([pairs[i] for i in places])
            advance(len(places))
    p_right = np.where([row.correct == 0 for row in rows], p_a, 1 - p_a)[~np.isnan(p_a)]
    right = np.where(p_right == 0.5, 0.5, p_right > 0.5)
    return {
        "n": len(right),
        "n_no_label": len(rows) - len(right),
        "accuracy": round(float(right.mean()), 4) if len(right) else None,
        "accuracy_ci": share_interval(right) if len(right) else None,
    }


def _hhh_rows() -> list[HHHRow] | None:
    folder = paper_folder()
    try:
        file = None if folder is None else paper_file(folder, HHH_FILE)
    except InputError:  # the folder has other files of the paper's
        return None
    return None if file is None else load_hhh(file)[::_HHH_EVERY]


def hhh_pair(number: int, row: HHHRow) -> Pair:
    """A row of two options as a pair; the conversation, of one turn or more, stays one text."""
    a, b = row.options
    return Pair(id=str(number), prompt=row.conversation.removeprefix("Human:").strip(), a=a, b=b)


def agreement(p: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """How often two labellers' P(A is better), both (pairs,), take the same side.

    A label of exactly one half takes half a side. `kappa` is Cohen's, agreement beyond chance; None
    where both always say the same.
    """
    same = np.where((p == 0.5) | (first == 0.5), 0.5, (p > 0.5) == (first > 0.5)).astype(float)
    sides = np.array([p > 0.5, first > 0.5]).astype(int)
    return {
        "agreement": round(float(same.mean()), 4),
        "agreement_ci": share_interval(same),
        "kappa": None if np.ptp(sides) == 0 else round(float(cohen_kappa_score(*sides)), 4),
    }
