"""DPO on the AI's labels: a substitute for the paper's RL, and a comparison the field expects.

Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) needs no preference model
and no sampling: it makes the better answer of each pair likelier than the worse one, against the
reference model. It learns from the answers of SL-CAI that were judged, and from no others.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from ..engine.models import Base, add_adapter, load_base, save_adapter, start_at_reference
from ..engine.pairs import comparisons, split
from ..engine.training import (
    common_arguments,
    forget_checkpoints,
    on_one_gpu,
    train,
    warm_cosine,
)
from ..prompts import chat
from ..records import Comparison, write_json
from ..run import Run, stage

_BETA = 0.1  # as in the DPO paper; it is no KL in nats, and not RL's beta


def dpo(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder with SL-CAI and AI feedback; returns its summary.

    Leaves `adapter/` and `steps.json` (loss, margin of the implicit rewards, share of pairs right).
    A finished evaluation is finished no longer: it has one more model to measure.
    """
    with stage(run, "dpo", after=("sl_cai", "ai_feedback")) as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        add_adapter(base, run.path("sl_cai", "adapter"), "default", trainable=True)
        rows = preference_rows(base, split(run, comparisons(run))[0])
        history = train(run, make_trainer(run, base, rows), "dpo", "DPO steps")
        save_adapter(base, run.path("dpo", "adapter"))
        steps = [_step(entry) for entry in history if "loss" in entry]
        write_json(run.path("dpo", "steps.json"), steps)
        forget_checkpoints(run, "dpo")
        run.path("evaluation", "done.json").unlink(missing_ok=True)
        summary |= {"n_pairs": len(rows), "steps": len(steps), "beta": _BETA}
        summary |= {"learning_rate": run.preset.dpo_learning_rate, **_ends(steps)}
    return summary


def preference_rows(base: Base, rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Each pair as TRL's prompt, chosen and rejected; a tie chooses nothing and is left out.

    TRL's DPO knows a winner and a loser alone: of a soft label it keeps the side.
    """
    found = []
    for row in rows:
        better, worse = (row.a, row.b) if row.p_a > 0.5 else (row.b, row.a)
        texts = {"chosen": better, "rejected": worse}
        if row.p_a != 0.5:
            said = {name: [{"role": "assistant", "content": t}] for name, t in texts.items()}
            parts = {"prompt": chat(row.prompt), **said}
            found.append({name: base.neutral_chat(part) for name, part in parts.items()})
    return found


def make_trainer(run: Run, base: Base, rows: Sequence[dict[str, Any]]) -> DPOTrainer:
    """TRL's trainer, with SL-CAI as its reference: TRL copies the adapter `default` to `ref`."""
    preset = run.preset
    arguments = DPOConfig(
        **common_arguments(run, base, "dpo"),
        **warm_cosine(),
        per_device_train_batch_size=preset.pm_batch,
        num_train_epochs=preset.pm_epochs,
        learning_rate=preset.dpo_learning_rate,
        beta=_BETA,
        max_length=1024,
    )
    trainer = DPOTrainer(
        model=base.model,
        args=on_one_gpu(arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=base.tokenizer,
    )
    start_at_reference(base.model)
    return trainer


def _step(entry: dict[str, float]) -> dict[str, float]:
    watched = {"margin": "rewards/margins", "right": "rewards/accuracies"}
    return {"step": entry["step"], "loss": entry["loss"]} | {
        name: entry.get(key, 0.0) for name, key in watched.items()
    }


def _ends(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    ends = {"first": steps[0], "last": steps[-1]}
    return {
        f"{name}_{end}": step[name] for name in ("loss", "margin") for end, step in ends.items()
    }
