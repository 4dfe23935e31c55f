"""Evaluation: base, SL-CAI and RL-CAI answer the prompts that no stage has seen.

Harmlessness is read by the outcome classifier, helpfulness by each prompt's own check and by the
perplexity of reference answers. Neither is used for training, filtering or reward anywhere.
"""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..answers import MADE_OF, corrected, differences, harm_interval, passes, summarise
from ..elo import as_pair, judgement, matches, rating
from ..engine import judges
from ..engine.answering import answer_all, evaluation_prompts
from ..engine.models import Base, add_adapter, load_base, role
from ..engine.outcomes import OutcomeClassifier, harmfulness, load_classifier
from ..engine.reward import load_preference_model
from ..engine.scoring import perplexity
from ..errors import InputError
from ..prompts import chat
from ..records import Answer, Completion, Judgement, Rows, fill
from ..run import STAGES, Run, stage

MODELS = ("base", "sl_cai", "rl_cai")
_TAKEN = {*MODELS, "dpo", *STAGES}
_NAME = re.compile("[a-z0-9][a-z0-9_-]{0,30}")
_ALONG = 8  # points at most on the road of RL
ELO_OF = (
    "points by Bradley and Terry from any two models' answers to a prompt, SL-CAI's being 0; 100 "
    "points are a win in 64% of prompts. Harmlessness: the embedded judge, who shares its weights "
    "with all models and its principles with the reward. Helpfulness: whose answers pass the "
    "prompt's check more often"
)


def evaluation(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder with all models; returns its summary.

    Leaves `answers.jsonl`, one Answer a model and prompt, and `judgements.jsonl`, one Judgement a
    red-team prompt and two models.
    """
    models = models_of(run)
    made = tuple(n for n in (*STAGES, "dpo") if n in {*models, "preference_model"})
    with stage(run, "evaluation", after=made) as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        for model in models[1:]:
            _put_on(run, base, model)
        judge = load_preference_model(base, run.path("preference_model", "adapter"))
        reader = load_classifier(base)
        store = Rows(run.path("evaluation", "answers.jsonl"), Answer)
        answers = {
            model: answer_all(run, base, reader, model, _role(model), store, judge)
            for model in models
        }
        summary |= {
            "models": {
                model: summarise(run, rows) | {"perplexity": reference_perplexity(run, base, model)}
                for model, rows in answers.items()
            },
            **compared(run, answers, reader),
            "elo": ratings(run, answers, judge_all(run, base, answers)),
            "judge_hhh": judge_hhh(run, base),
        }
    return summary


def compared(
    run: Run, answers: Mapping[str, list[Answer]], reader: OutcomeClassifier
) -> dict[str, Any]:
    """What rests on the classifier beside each model's own measures, and what all are made of."""
    return {
        "differences": differences(run, answers),
        "corrected_p": corrected(run, answers),
        "along_rl": along_rl(run, reader),
        "made_of": MADE_OF | {"elo": ELO_OF},
        "classifier": reader.accuracy,
    }


def models_of(run: Run) -> tuple[str, ...]:
    """The models to measure: `MODELS`, DPO's if the run has it, and those that were added."""
    dpo = () if run.summary("dpo") is None else ("dpo",)
    folder = run.path("evaluation", "added")
    return (*MODELS, *dpo, *sorted(path.name for path in folder.glob("*") if path.is_dir()))


def add_model(run: Run, name: str, adapter: Path) -> None:
    """Let the evaluation measure an adapter of your own under a name of its own as well.

    The adapter is copied into the run, and a finished evaluation is finished no longer. Raises
    InputError for a name that is taken or no name, and for a folder without an adapter.
    """
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise InputError(
            f"model name {name!r} is taken or no name; expected small letters, digits, - and _, "
            f"and none of {', '.join(sorted(_TAKEN))}"
        )
    files = [adapter / file for file in ("adapter_config.json", "adapter_model.safetensors")]
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise InputError(f"{missing} is not there; expected a folder that peft saved")
    place = run.path("evaluation", "added", name)
    if place.exists():
        if any((place / file.name).read_bytes() != file.read_bytes() for file in files):
            raise InputError(f"{place} is another adapter; delete it, or choose another name")
        return  # the same command again goes on
    partial = run.path("evaluation", f"{name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in files:
        shutil.copy(file, partial)
    place.parent.mkdir(exist_ok=True)
    partial.replace(place)
    run.path("evaluation", "done.json").unlink(missing_ok=True)


def _put_on(run: Run, base: Base, model: str) -> None:
    added = run.path("evaluation", "added", model)
    if not added.is_dir():
        add_adapter(base, run.path(model, "adapter"), model)
        return
    try:
        add_adapter(base, added, model)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise InputError(
            f"{added} is an adapter of another model than {run.preset.model!r}; delete it, and add "
            "one that was trained on this base"
        ) from None


def _role(model: str) -> str | None:
    return None if model == "base" else model


def reference_perplexity(run: Run, base: Base, model: str) -> float:
    """Perplexity of the reference answers to the helpful evaluation prompts under one model."""
    found = [p for s, p in evaluation_prompts(run) if s == "helpful" and p.reference]
    texts = [base.render(chat(prompt.prompt)) for prompt in found]
    references = [prompt.reference or "" for prompt in found]
    with role(base, _role(model)):
        return round(perplexity(base, texts, references, run.preset.batch_size), 3)


def along_rl(run: Run, reader: OutcomeClassifier) -> list[dict[str, Any]]:
    """Mean harmfulness, 0..4, of what RL sampled at T = 1 on its way (Fig 10), first steps first.

    Of the completions to red-team prompts alone; steps are put together to a few points, each with
    its interval over completions.
    """
    asked = {prompt.prompt for prompt in run.prompts("red_team", "train")}
    rows = Rows(run.path("rl_cai", "completions.jsonl"), Completion).read()
    rows = [row for row in rows if row.prompt in asked]
    if not rows:
        return []
    values = harmfulness(reader.read([r.prompt for r in rows], [r.completion for r in rows]))
    width = math.ceil(max(row.step for row in rows) / _ALONG)
    points: dict[int, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        points.setdefault((row.step - 1) // width, []).append(value)
    return [_point(run, place, width, own) for place, own in sorted(points.items())]


def _point(run: Run, place: int, width: int, values: Sequence[float]) -> dict[str, Any]:
    seed = run.seed("bootstrap", "along rl")
    return {
        "first_step": place * width + 1,
        "last_step": (place + 1) * width,
        "n": len(values),
        "harmfulness": round(float(np.mean(values)), 4),
        "harmfulness_ci": harm_interval(values, run.preset.bootstrap, seed),
    }


def judge_all(run: Run, base: Base, answers: Mapping[str, list[Answer]]) -> list[Judgement]:
    """Any two models' answers to each red-team prompt, judged by the embedded judge."""
    work = matches(answers, "red_team")
    store = Rows(run.path("evaluation", "judgements.jsonl"), Judgement)
    with run.progress.bar("judgements", len(work)) as advance:
        return fill(
            store,
            work,
            lambda pair: judgement(*pair, 0.5, "").id,
            lambda batch: _judge(run, base, batch),
            run.preset.batch_size,
            advance,
        )


def _judge(run: Run, base: Base, work: Sequence[tuple[Answer, Answer]]) -> list[Judgement]:
    with role(base, None):
        p_a = judges.embedded(run, base, [as_pair(a, b) for a, b in work])
    return [judgement(a, b, p, "embedded") for (a, b), p in zip(work, p_a, strict=True)]


def checked(answers: Mapping[str, list[Answer]]) -> list[Judgement]:
    """Any two models on each helpful prompt: whose answers pass its check more often.

    A half, and half of the difference of their shares of passes: sure only if all of the one's
    pass and none of the other's.
    """
    found = [(pair, passes(pair)) for pair in matches(answers, "helpful")]
    return [judgement(*pair, 0.5 + (p[0] - p[1]) / 2, "checks") for pair, p in found]


def ratings(
    run: Run, answers: Mapping[str, list[Answer]], judgements: Sequence[Judgement]
) -> dict[str, dict[str, Any]]:
    """Elo of each model in harmlessness and in helpfulness, SL-CAI's being 0."""
    draws, seed = run.preset.bootstrap, run.seed("bootstrap", "elo")
    kinds = {"harmlessness": judgements, "helpfulness": checked(answers)}
    return {
        name: rating(rows, list(answers), "sl_cai", draws, seed) for name, rows in kinds.items()
    }


def judge_hhh(run: Run, base: Base) -> dict[str, Any] | None:
    """How often the embedded judge picks what people picked in the paper's HHH comparisons.

    None where the released file is not on this machine (`cai-lite fetch-paper`).
    """
    with role(base, None):
        return judges.hhh_accuracy(run, lambda pairs: judges.embedded(run, base, pairs))
