"""The preference model: learn the AI's soft labels (paper §4.1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from trl import RewardConfig

from ..engine import judges
from ..engine.models import load_base
from ..engine.pairs import comparisons, split, unjudged
from ..engine.reward import (
    PreferenceModel,
    add_scalar_adapter,
    load_preference_model,
    pair_rows,
    save_preference_model,
)
from ..engine.soft_reward import SoftPairs, SoftRewardTrainer
from ..engine.training import (
    common_arguments,
    forget_checkpoints,
    on_one_gpu,
    train,
    warm_cosine,
)
from ..measures import calibration_error, share_interval
from ..records import Comparison, Pair, write_json
from ..run import Run, stage


def preference_model(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder with finished AI feedback; returns its summary.

    Leaves `adapter/` (LoRA and head in safetensors) and `held_out.json` (labels and scores).
    """
    with stage(run, "preference_model", after=("ai_feedback",)) as summary:
        training, held_out = split(run, comparisons(run))
        more = unjudged(run, len(training))
        sets = {name: split(run, rows) for name, rows in more.items()}
        everything = [*training, *(row for learnt, _ in sets.values() for row in learnt)]
        losses = fit(run, everything)
        base = load_base(run.preset)
        run.note_model(base.sha256)
        model = load_preference_model(base, run.path("preference_model", "adapter"))
        measured, scores = measure(run, model, held_out)
        others = {name: measure(run, model, rows)[0] for name, (_, rows) in sets.items()}
        write_json(run.path("preference_model", "held_out.json"), scores)
        forget_checkpoints(run, "preference_model")
        summary |= {
            "n_train": len(everything),
            "shares": {name: round(len(r) / len(everything), 4) for name, (r, _) in sets.items()},
            "n_eval": len(held_out),
            **measured,
            "unjudged": others,
            "hhh": hhh(run, model),
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "losses": losses,
        }
    return summary


def fit(run: Run, rows: Sequence[Comparison]) -> list[float]:
    """Train adapter and head on soft labels and save them; returns the loss of each step."""
    preset = run.preset
    base = load_base(preset, scalar=True)
    add_scalar_adapter(base, preset)
    arguments = RewardConfig(
        **common_arguments(run, base, "preference_model"),
        **warm_cosine(),
        per_device_train_batch_size=preset.pm_batch,
        num_train_epochs=preset.pm_epochs,
        learning_rate=preset.pm_learning_rate,
        max_length=1024,
    )
    trainer = SoftRewardTrainer(
        model=base.model,
        args=on_one_gpu(arguments),
        data_collator=SoftPairs(pad_token_id=base.tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(pair_rows(base, rows)),
        processing_class=base.tokenizer,
    )
    history = train(run, trainer, "preference_model", "preference model steps")
    save_preference_model(base, preset, run.path("preference_model", "adapter"))
    return [entry["loss"] for entry in history if "loss" in entry]


def hhh(run: Run, model: PreferenceModel) -> dict[str, Any] | None:
    """How often the preference model picks what people picked in the paper's HHH comparisons.

    None where the released file is not on this machine (`cai-lite fetch-paper`).
    """
    return judges.hhh_accuracy(run, lambda pairs: preferred(model, pairs, run.preset.batch_size))


def preferred(model: PreferenceModel, pairs: Sequence[Pair], batch_size: int) -> np.ndarray:
    """The preference model's P(A is better) = σ(r_A − r_B) of each pair, (pairs,)."""
    prompts = [pair.prompt for pair in pairs]
    r_a = model.scores(prompts, [pair.a for pair in pairs], batch_size)
    r_b = model.scores(prompts, [pair.b for pair in pairs], batch_size)
    found: np.ndarray = 1 / (1 + np.exp((r_b - r_a).numpy().astype(float)))
    return found


def measure(
    run: Run, model: PreferenceModel, rows: Sequence[Comparison]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Agreement with held-out labels, with interval, and calibration; and the scores behind them.

    A pair counts as right when the PM and the label prefer the same answer, half when the label
    is an exact tie.
    """
    predicted = preferred(model, rows, run.preset.batch_size)
    labels = np.array([row.p_a for row in rows])
    right = np.where(labels == 0.5, 0.5, (predicted > 0.5) == (labels > 0.5)).astype(float)
    measured = {
        "accuracy": round(float(right.mean()), 4),
        "accuracy_ci": share_interval(right),
        "ece": calibration_error(predicted, labels),
    }
    return measured, {"label": labels.tolist(), "predicted": predicted.round(4).tolist()}
