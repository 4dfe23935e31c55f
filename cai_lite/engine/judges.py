"""Who says which of two models' answers is better, and with which of the run's own instruments.

The embedded judge is the untouched base as *mixed* labeller: it shares weights, and with the usual
labels principles too, with what the models were trained on. A report has to say so.
"""

from collections.abc import Sequence

import numpy as np

from ..constitution import Principle
from ..records import Pair, Revision, Rows, read_json, write_json
from ..run import Run
from . import labellers
from .contrast import contrast_pairs
from .labellers import QUESTION
from .models import Base
from .reader import OWN_TEXT, Reader, fit_reader, load_reader, revision_pairs, worked_pairs

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
