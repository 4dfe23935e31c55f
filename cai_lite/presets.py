"""Every size of a run in one place: a frozen preset per kind of machine.

Sizes are counts of prompts, tokens, rows or steps. `auto` looks at the machine and says why it
chose.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import InputError

Warm = Annotated[float, Field(gt=0)]


def _numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Preset(BaseModel):
    """All that decides what a run does; any field can be overridden with `--set field=value`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    name: str
    # the model that plays every role: "embedded", a folder or .gguf file, or a hub id
    model: str = "embedded"
    model_sha256: str = ""  # expected hash of the weights; empty: whatever is found, recorded
    quantization: Literal["nf4", "none"] = "nf4"
    needs_cuda: bool = False
    constitution: str = "harmlessness"
    seed: int = Field(0, ge=0)
    # a shipped set's name, or a JSONL, CSV or hub data set of prompts
    red_team: str = "red_team"
    helpful: str = "helpful"
    borderline: str = "borderline"
    batch_size: int = Field(32, ge=1)  # rows generated or scored at once

    # critique and revision (paper §3.1)
    red_team_prompts: int = Field(ge=1)
    rounds: int = Field(2, ge=1)
    # guided: for small models; dialogue: chat turns; completion: worked dialogues, for large ones
    revision_layout: Literal["guided", "dialogue", "completion"] = "guided"
    few_shots: str = ""  # completion: a folder of the paper's files; empty: our own dialogues
    critique: bool = True  # False: revise without a critique (the paper's Fig 7)
    principles: int = Field(0, ge=0)  # only the constitution's first so many; 0: all (Fig 6)
    candidates: int = Field(5, ge=1)  # revisions tried per round, one kept
    # nats that a revision must be likelier behind its prompt than behind a greeting; 0: not asked
    least_relevance: float = Field(0, ge=0)
    revision_sentences: int = Field(1, ge=1)  # guided: how much of a revision is kept
    response_tokens: int = Field(64, ge=8)
    critique_tokens: int = Field(40, ge=8)
    revision_tokens: int = Field(32, ge=8)
    reason_tokens: int = Field(24, ge=4)  # guided: for what follows the reason's opening
    response_temperature: float = Field(0.7, ge=0)
    revision_temperature: float = Field(0.3, ge=0)

    # supervised fine-tuning (paper §3.2)
    sl_rounds: Literal["all", "last"] = "all"  # whose revisions are trained on
    helpful_share: float = Field(0.5, ge=0, lt=1)  # of the rows: the start's own helpful answers
    helpful_temperature: float = Field(0.3, ge=0)
    lora_rank: int = Field(8, ge=1)
    sl_epochs: float = Field(1.0, gt=0)
    sl_batch: int = Field(8, ge=1)
    sl_learning_rate: float = Field(3e-4, gt=0)

    # AI feedback (paper §4.1)
    labeller: Literal["contrast", "pointwise", "multiple_choice", "chain_of_thought", "mixed"] = (
        "contrast"
    )
    label_few_shots: bool = False  # multiple choice and pointwise: behind worked examples
    mixed_weight: float = Field(0.5, ge=0, le=1)  # contrast's share of the log-odds
    thoughts: int = Field(2, ge=1)  # chains of thought a pair, in turns in both orders
    thought_tokens: int = Field(72, ge=16)
    thought_temperature: float = Field(0.6, ge=0)
    thought_clamp: float = Field(0.1, ge=0, le=0.5)  # furthest a label may lie from 0.5
    contrast_prompts: int = Field(32, ge=8)
    principles_per_pair: int = Field(3, ge=1)
    feedback_prompts: int = Field(ge=8)  # one pair each
    # the two answers of a pair take these in turns; as text, 0.7,1.0
    feedback_temperatures: Annotated[tuple[Warm, ...], BeforeValidator(_numbers)] = (1.0,)
    bias_pairs: int = Field(16, ge=1)  # pairs asked in both orders to measure position bias

    # preference model
    pm_labels: str = ""  # a JSONL of comparisons, as the labelling widget's; empty: AI feedback's
    pm_epochs: float = Field(1.0, gt=0)
    pm_batch: int = Field(8, ge=1)
    pm_learning_rate: float = Field(3e-4, gt=0)
    pm_eval_share: float = Field(0.25, gt=0, lt=1)
    # shares of the training pairs that no judge labels; the rest is AI feedback's
    pm_helpful_share: float = Field(0, ge=0, le=0.24)  # harmless prompts, answer over none
    pm_dropped_share: float = Field(0, ge=0, le=0.24)  # a revision over a try a filter dropped
    pm_spoilt_share: float = Field(0, ge=0, le=0.24)  # a revision over itself gone to pieces
    pm_swapped_share: float = Field(0, ge=0, le=0.24)  # a revision over another prompt's
    pm_revision_share: float = Field(0, ge=0, le=0.24)  # a revision over the answer it revises
    pm_contrast_share: float = Field(0, ge=0, le=0.24)  # under a principle over its opposite

    # reinforcement learning (paper §4.2)
    rl_algorithm: Literal["rloo", "grpo"] = "rloo"
    rl_steps: int = Field(ge=1)
    rl_prompts: int = Field(4, ge=1)  # prompts a step
    rl_generations: int = Field(4, ge=2)  # completions a prompt
    rl_tokens: int = Field(48, ge=8)
    rl_learning_rate: float = Field(1e-4, gt=0)
    rl_beta: float = Field(0.05, ge=0)
    rl_helpful_share: float = Field(0.25, ge=0, lt=1)
    # nats a completion from SL-CAI, over a few steps, beyond which RL stops
    rl_max_kl: float = Field(25.0, gt=0)
    rl_watch_every: int = Field(8, ge=0)  # steps between two looks at held-out prompts; 0: none
    rl_watch_prompts: int = Field(16, ge=1)  # of each kind
    dpo_learning_rate: float = Field(2e-4, gt=0)  # of the substitute, `cai-lite dpo`

    # evaluation
    eval_red_team: int = Field(ge=4)
    eval_helpful: int = Field(ge=4)
    eval_borderline: int = Field(ge=4)
    eval_samples: int = Field(1, ge=1)  # answers to each helpful prompt, whose passes are averaged
    eval_tokens: int = Field(64, ge=8)
    eval_temperature: float = Field(0.7, ge=0)
    bootstrap: int = Field(2000, ge=100)


_CI: dict[str, Any] = dict(
    red_team_prompts=32, rounds=2, lora_rank=4, helpful_share=0.6,
    sl_epochs=2, sl_learning_rate=1.5e-3, pm_learning_rate=1e-3, rl_learning_rate=5e-4,
    dpo_learning_rate=5e-4,
    response_tokens=48, contrast_prompts=32, principles_per_pair=2,
    feedback_prompts=48, bias_pairs=8,
    pm_epochs=2, pm_helpful_share=0.16, pm_dropped_share=0.16, pm_swapped_share=0.16,
    rl_steps=4, rl_prompts=2, rl_generations=4, rl_tokens=40, rl_watch_prompts=6,
    eval_red_team=24, eval_helpful=24, eval_borderline=12, eval_tokens=48,
)  # fmt: skip
_CPU: dict[str, Any] = dict(
    red_team_prompts=192, rounds=2, sl_rounds="last", sl_epochs=1, lora_rank=4,
    helpful_share=0.77, sl_learning_rate=1e-3, pm_learning_rate=1e-3, rl_learning_rate=3e-4,
    contrast_prompts=64, feedback_prompts=160, bias_pairs=24,
    pm_epochs=3, pm_helpful_share=0.16, pm_dropped_share=0.16, pm_swapped_share=0.16,
    rl_steps=16, rl_prompts=4, rl_generations=4, rl_tokens=48, rl_beta=0.1, rl_max_kl=2.0,
    eval_red_team=80, eval_helpful=80, eval_borderline=60, eval_samples=4,
)  # fmt: skip
_CUDA: dict[str, Any] = dict(
    needs_cuda=True, labeller="pointwise", revision_layout="dialogue", red_team_prompts=240,
    rounds=4, candidates=2, response_tokens=128,
    critique_tokens=96, revision_tokens=128,
    contrast_prompts=64, feedback_prompts=240, bias_pairs=64, lora_rank=16, sl_learning_rate=2e-4,
    pm_learning_rate=2e-4, pm_helpful_share=0.16, pm_dropped_share=0.16, pm_swapped_share=0.16,
    rl_steps=60, rl_prompts=8, rl_generations=4, rl_tokens=128,
    rl_learning_rate=2e-5, dpo_learning_rate=2e-5,
    eval_red_team=80, eval_helpful=80, eval_borderline=60, eval_samples=4, eval_tokens=128,
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    "ci": Preset(name="ci", **_CI),
    "cpu": Preset(name="cpu", **_CPU),
    "t4": Preset(  # a base of 1.5B could not be asked, it could be read: notebook 03
        name="t4", model="HuggingFaceTB/SmolLM2-1.7B-Instruct", **{**_CUDA, "labeller": "contrast"}
    ),
    "gpu": Preset(
        name="gpu", model="mistralai/Mistral-7B-Instruct-v0.1", **{**_CUDA, "candidates": 1}
    ),
}


def get_preset(name: str = "auto", /, **overrides: Any) -> Preset:
    """The preset of that name with fields overridden; strings are read as the field's type.

    Raises InputError for an unknown preset or field, or a value the field does not take.
    """
    if name == "auto":
        name = choose_preset()[0]
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; expected auto, {', '.join(PRESETS)}")
    unknown = sorted(set(overrides) - set(Preset.model_fields) | ({"name"} & set(overrides)))
    if unknown:
        fields = ", ".join(field for field in Preset.model_fields if field != "name")
        raise InputError(f"preset field {unknown[0]!r} is unknown; the fields are {fields}")
    try:
        return Preset.model_validate(PRESETS[name].model_dump() | overrides)
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0]
        raise InputError(f"preset field {field!r} is {first['input']!r}: {first['msg']}") from None


def choose_preset() -> tuple[str, str]:
    """(name, reason) of the preset that fits this machine; imports torch to look for a GPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", f"no CUDA device is visible; {os.cpu_count()} CPU cores run the 135M model"
    device = torch.cuda.get_device_properties(0)
    gigabytes = device.total_memory / 2**30
    found = f"{device.name} with {gigabytes:.0f} GB"
    if gigabytes >= 22:
        return "gpu", f"{found} holds a 7B model in 4 bits with its training states"
    if gigabytes >= 14:
        return "t4", f"{found} holds a 1.7B model in 4 bits, not a 7B with its training states"
    return "cpu", f"{found} is too small for t4 (14 GB); the 135M model runs on it or on the CPU"
