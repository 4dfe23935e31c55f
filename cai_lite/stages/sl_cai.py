"""SL-CAI: fine-tune the start on its own revisions and on helpful answers (paper §3.2)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from trl import SFTConfig, SFTTrainer

from ..data import Prompt
from ..engine.models import Base, load_base, new_adapter, save_adapter
from ..engine.sampling import Sampling, generate
from ..engine.training import (
    common_arguments,
    forget_checkpoints,
    on_one_gpu,
    train,
    warm_cosine,
)
from ..errors import InputError
from ..prompts import chat
from ..records import HelpfulAnswer, Revision, Rows, fill
from ..run import Run, stage
from ..texts import fault, repeats_itself

_REPEATS = "repeats itself"
_ATTEMPTS = 4  # at a helpful answer: a cold small model repeats itself, a hot one rambles


def sl_cai(run: Run) -> dict[str, Any]:
    """Run the stage on a run folder whose critique and revision is finished; returns its summary.

    Leaves `answers.jsonl` (helpful answers of the start) and `adapter/` (LoRA in safetensors).
    """
    with stage(run, "sl_cai", after=("critique_revision",)) as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        revisions = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
        revised = trained_on(run, revisions)
        if not revised:
            raise InputError(
                f"none of the {len(revisions)} revisions in {run.folder} is sound, expected some "
                "to train on; see their `tries`, and raise red_team_prompts or candidates"
            )
        answers = helpful_answers(run, base, len(revised))
        rows = training_rows(revised, answers)
        new_adapter(base, run.preset, "default")
        losses = fine_tune(run, base, rows)
        summary |= {
            "n_rows": len(rows),
            "n_revisions": len(rows) - sum(not a.dropped for a in answers),
            "n_helpful": sum(not answer.dropped for answer in answers),
            "left_out": left_out(run, revisions, answers),
            "helpful_share": round(sum(not a.dropped for a in answers) / len(rows), 4),
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "losses": losses,
        }
    return summary


def trained_on(run: Run, revisions: Sequence[Revision]) -> list[Revision]:
    """Sound revisions of all rounds, or of the last, as the preset says; no first answers.

    One that repeats itself is left out: "it is against the law, because it is against the law".
    """
    return [row for row in _sound(run, revisions) if not repeats_itself(row.response)]


def _sound(run: Run, revisions: Sequence[Revision]) -> list[Revision]:
    first = run.preset.rounds if run.preset.sl_rounds == "last" else 1
    return [row for row in revisions if row.round >= first and not row.dropped]


def left_out(
    run: Run, revisions: Sequence[Revision], answers: Sequence[HelpfulAnswer]
) -> dict[str, dict[str, int]]:
    """How many sound revisions, and how many helpful answers, are not trained on, by reason."""
    repeated = len(_sound(run, revisions)) - len(trained_on(run, revisions))
    return {
        "revisions": {_REPEATS: repeated} if repeated else {},
        "helpful answers": dict(Counter(row.dropped for row in answers if row.dropped)),
    }


def helpful_answers(run: Run, base: Base, revisions: int) -> list[HelpfulAnswer]:
    """The start's own answers to harmless prompts, so that SL-CAI stays helpful (paper §3.2).

    As many as make the preset's share of the rows, or as there are prompts.
    """
    share = run.preset.helpful_share
    prompts = run.prompts("helpful", "train", round(revisions * share / (1 - share)))
    store = Rows(run.path("sl_cai", "answers.jsonl"), HelpfulAnswer)
    with run.progress.bar("helpful answers", len(prompts)) as advance:
        return fill(
            store,
            prompts,
            lambda prompt: prompt.id,
            lambda batch: _answer(run, base, batch),
            run.preset.batch_size,
            advance,
        )


def _answer(run: Run, base: Base, prompts: Sequence[Prompt]) -> list[HelpfulAnswer]:
    """One answer a prompt; what came out faulty is asked for again, each time a little hotter.

    A cold small model repeats itself in a quarter of its answers, and SL-CAI would learn that.
    """
    found: dict[str, HelpfulAnswer] = {}
    for attempt in range(_ATTEMPTS):
        left = [p for p in prompts if p.id not in found or found[p.id].dropped]
        if not left:
            break
        heat = run.preset.helpful_temperature + 0.2 * attempt
        sampling = Sampling(run.preset.response_tokens, heat)
        seeds = [run.seed("helpful", prompt.id, attempt) for prompt in left]
        texts = [base.render(chat(prompt.prompt)) for prompt in left]
        said = generate(base, texts, sampling, seeds, on_tokens=run.progress.tokens)
        for prompt, text in zip(left, said, strict=True):
            found[prompt.id] = HelpfulAnswer(
                id=prompt.id, prompt=prompt.prompt, response=text.strip(), dropped=_fault(text)
            )
    return [found[prompt.id] for prompt in prompts]


def _fault(text: str) -> str:
    return fault(text) or (_REPEATS if repeats_itself(text) else "")


def training_rows(
    revisions: Sequence[Revision], answers: Sequence[HelpfulAnswer]
) -> list[dict[str, Any]]:
    """Revisions and sound helpful answers, each once, as TRL's prompt and completion."""
    revised = [(r.prompt, r.response) for r in revisions]
    helpful = [(a.prompt, a.response) for a in answers if not a.dropped]
    return [
        {"prompt": chat(prompt), "completion": [{"role": "assistant", "content": response}]}
        for prompt, response in dict.fromkeys(revised + helpful)
    ]


def neutral_row(base: Base, row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts cannot forge a turn: TRL renders it, not `Base.render`."""
    return {part: base.neutral_chat(row[part]) for part in ("prompt", "completion")}


class AnswerTrainer(SFTTrainer):
    """TRL's trainer, with the vocabulary head read at the answers' tokens alone on a CPU too.

    The loss is TRL's own. Off a GPU its kernel computes the head at every prompt token and pad as
    well, and once more for the gradients, which cost 40% of a step.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean cross-entropy of the answers' tokens, in nats."""
        if inputs["input_ids"].device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        answers = labels != -100
        causal = self.accelerator.unwrap_model(model).get_base_model()
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        states = causal.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = causal.get_output_embeddings()(states[:, :-1][answers]).float()
        total: torch.Tensor = cross_entropy(logits, labels[answers], reduction="sum")
        return total / (answers.sum() if num_items_in_batch is None else num_items_in_batch)


def fine_tune(run: Run, base: Base, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Train the base's adapter on the answers alone and save it; returns the loss of each step.

    The loss is the mean cross-entropy of the answer's tokens, in nats; the prompt is masked.
    """
    preset = run.preset
    arguments = SFTConfig(
        **common_arguments(run, base, "sl_cai"),
        **warm_cosine(),
        per_device_train_batch_size=preset.sl_batch,
        num_train_epochs=preset.sl_epochs,
        learning_rate=preset.sl_learning_rate,
        completion_only_loss=True,
        max_length=1024,
    )
    trainer = AnswerTrainer(
        model=base.model,
        args=on_one_gpu(arguments),
        train_dataset=Dataset.from_list([neutral_row(base, row) for row in rows]),
        processing_class=base.tokenizer,
    )
    history = train(run, trainer, "sl_cai", "SL-CAI steps")
    save_adapter(base, run.path("sl_cai", "adapter"))
    forget_checkpoints(run, "sl_cai")
    return [entry["loss"] for entry in history if "loss" in entry]
