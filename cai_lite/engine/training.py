"""What every TRL trainer here shares: its arguments, progress, and training that resumes.

A checkpoint is believed only if its mark was written after all its files were.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.nn.functional import linear
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging as transformers_logging

from ..records import write_text
from ..run import Run
from .models import Base
from .packed import has_room

_MARK = "complete"


def common_arguments(run: Run, base: Base, stage: str) -> dict[str, Any]:
    """Arguments of all trainers: where, which precision, which seed, when to keep a checkpoint."""
    transformers_logging.set_verbosity_error()
    return {
        "output_dir": str(_checkpoints(run, stage)),
        "use_cpu": base.device.type == "cpu",
        "bf16": base.dtype == torch.bfloat16,
        "fp16": base.dtype == torch.float16,
        "gradient_checkpointing": base.device.type == "cuda",
        "logging_steps": 1,
        "save_strategy": "steps",
        # RL that went too far steps back by two, and needs those two
        "save_steps": 1 if base.device.type == "cpu" or stage == "rl_cai" else 10,
        "save_total_limit": 3,
        "seed": run.preset.seed,
        "report_to": "none",
        "disable_tqdm": True,
    }


def on_one_gpu(arguments: Any) -> Any:
    """Keep a trainer to the GPU that the base is on: of several it would use all, and TRL refuses.

    transformers has no public way; these arguments are its `TrainingArguments`.
    """
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def warm_cosine() -> dict[str, Any]:
    """A rate that rises over the first tenth of the steps and falls by a cosine to a tenth of it.

    Plain "cosine" with a warm-up begins at a rate of 0, so that one step would train nothing.
    """
    return {
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
    }


def train(run: Run, trainer: Any, stage: str, what: str) -> list[dict[str, float]]:
    """Train from the last whole checkpoint, or the start; returns what was logged at each step."""
    float32_adapters(trainer.model)
    total = _steps(trainer)
    with run.progress.bar(what, total) as advance:
        trainer.remove_callback(PrinterCallback)  # it prints each step on stdout
        trainer.add_callback(_Mark(advance))
        found = last_checkpoint(_checkpoints(run, stage))
        with unpacked(trainer.model):
            trainer.train(resume_from_checkpoint=str(found) if found else None)
    return trainer.state.log_history


@contextmanager
def unpacked(model: torch.nn.Module) -> Iterator[None]:
    """Let 4-bit layers on a CPU multiply by their weights dequantised once, not at every step.

    The products and their gradients are the layers' own; it costs 4 bytes a weight while it lasts.
    A model too large for that (half a billion parameters) is left as it is.
    """
    layers: list[Any] = [
        layer
        for layer in model.modules()
        if isinstance(layer, Linear4bit) and layer.weight.device.type == "cpu"
    ]
    if not has_room(layers):
        layers = []
    try:
        for layer in layers:
            whole = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            layer.forward = partial(linear, weight=whole, bias=layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def logged(run: Run, stage: str) -> list[dict[str, float]]:
    """What was logged at each step up to the newest whole checkpoint; nothing without one."""
    found = last_checkpoint(_checkpoints(run, stage))
    if found is None:
        return []
    history: list[dict[str, float]] = TrainerState.load_from_json(
        str(found / TRAINER_STATE_NAME)
    ).log_history
    return history


def forget_checkpoints(run: Run, stage: str) -> None:
    """Remove a stage's checkpoints, once what it trained is saved."""
    shutil.rmtree(_checkpoints(run, stage), ignore_errors=True)


def last_checkpoint(folder: Path, step: float = math.inf) -> Path | None:
    """The newest checkpoint that was written to its end, of that step or before."""
    whole = {int(m.parent.name.split("-")[1]): m.parent for m in folder.glob(f"*/{_MARK}")}
    return whole.get(max((number for number in whole if number <= step), default=0))


def float32_adapters(model: torch.nn.Module) -> None:
    """Train adapters and heads in float32.

    TRL casts what is trained on a 4-bit base to bfloat16, as QLoRA did on GPUs. A scalar head in
    bfloat16 does not accept a float32 body's states, and small updates are lost to rounding.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _checkpoints(run: Run, stage: str) -> Path:
    return run.path(stage, "checkpoints")


def _steps(trainer: Any) -> int:
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    batches = len(trainer.get_train_dataloader())
    return -int(-batches * trainer.args.num_train_epochs // 1)


class _Mark(TrainerCallback):
    """Marks whole checkpoints and moves the progress bar."""

    def __init__(self, advance: Any) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_text(folder / _MARK, "")
