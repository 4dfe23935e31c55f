"""RL-CAI: reinforcement learning from the preference model's reward (paper §4.2).

The paper's PPO is gone from TRL; RLOO (default) and GRPO are used as published (tested: TRL 1.16).
Policy, reference and preference model are adapters of one base: `default`, `ref` (a frozen copy of
SL-CAI) and `pm`.
"""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ..engine.models import Base, add_adapter, load_base, save_adapter, start_at_reference
from ..engine.outcomes import load_classifier
from ..engine.reward import PreferenceModel, load_preference_model
from ..engine.training import (
    common_arguments,
    forget_checkpoints,
    last_checkpoint,
    logged,
    on_one_gpu,
    train,
)
from ..engine.watch import Step, Watch, Watcher, steps_of, too_far
from ..prompts import chat
from ..records import Completion, Rows, write_json
from ..run import Run, stage

_TRAINERS = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}
# completions whose gradients are computed at once: on a CPU two keep it as busy as sixteen, and the
# states that sixteen keep for the way back would be most of the memory
_MICRO_BATCH = {"cpu": 2, "cuda": 16}


def rl_cai(run: Run, on_step: Callable[[list[Step]], None] | None = None) -> dict[str, Any]:
    """Run the stage on a run folder with SL-CAI and a preference model; returns its summary.

    Leaves `adapter/`, `completions.jsonl` and `steps.json`, one row a step as in `step_of`;
    `on_step` is called with the rows so far. Where the KL passes the preset's limit, training stops
    and the adapter is that of the newest checkpoint before: the farthest within the limit is kept.
    None is chosen by what is watched, since those prompts are the evaluation's.
    """
    with stage(run, "rl_cai", after=("sl_cai", "preference_model")) as summary:
        base = load_base(run.preset)
        run.note_model(base.sha256)
        reward = put_on_roles(run, base)
        trainer = make_trainer(run, base, reward)
        trainer.add_callback(Watch(watcher(run, base, reward), on_step))
        steps = steps_of(logged(run, "rl_cai"))  # by an attempt that was killed
        if not too_far(run.preset, steps):
            steps = steps_of(train(run, trainer, "rl_cai", "RL-CAI steps"))
        stopped = too_far(run.preset, steps)
        if stopped:
            step_back(run, base, len(steps))
        save_adapter(base, run.path("rl_cai", "adapter"))
        write_json(run.path("rl_cai", "steps.json"), steps)
        forget_checkpoints(run, "rl_cai")
        summary |= {
            "algorithm": run.preset.rl_algorithm,
            "beta": run.preset.rl_beta,
            "steps": len(steps),
            "stopped": stopped,
            "reward_first": steps[0]["reward"],
            "reward_last": steps[-1]["reward"],
            "kl_last": steps[-1]["kl"],
        }
    return summary


def put_on_roles(run: Run, base: Base) -> PreferenceModel:
    """SL-CAI as the trainable adapter `default`, the preference model as `pm`, on one base."""
    add_adapter(base, run.path("sl_cai", "adapter"), "default", trainable=True)
    model = load_preference_model(base, run.path("preference_model", "adapter"))
    base.model.set_adapter("default")
    return model


def rl_prompts(run: Run, base: Base) -> Dataset:
    """Red-team and helpful prompts in a seeded order, the helpful share as the preset says.

    TRL renders them, not `Base.render`, so they are made safe here: no text can forge a turn.
    """
    needed = run.preset.rl_steps * run.preset.rl_prompts
    helpful = run.prompts("helpful", "train", round(needed * run.preset.rl_helpful_share))
    red_team = run.prompts("red_team", "train", max(1, needed - len(helpful)))
    prompts = [{"prompt": base.neutral_chat(chat(prompt.prompt))} for prompt in red_team + helpful]
    return Dataset.from_list(prompts).shuffle(seed=run.seed("rl prompts"))


def make_trainer(run: Run, base: Base, model: PreferenceModel) -> Any:
    """TRL's trainer with the preference model as its reward and KL to SL-CAI.

    TRL copies the adapter `default` to `ref` and takes the KL against it.
    """
    preset = run.preset
    trainer_class, config_class = _TRAINERS[preset.rl_algorithm]
    completions = preset.rl_prompts * preset.rl_generations
    most = min(_MICRO_BATCH[base.device.type], completions)
    micro = next(n for n in range(most, 0, -1) if completions % n == 0)
    arguments = config_class(
        **common_arguments(run, base, "rl_cai"),
        max_steps=preset.rl_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=completions // micro,
        num_generations=preset.rl_generations,
        max_completion_length=preset.rl_tokens,
        temperature=1.0,
        beta=preset.rl_beta,
        learning_rate=preset.rl_learning_rate,
        lr_scheduler_type="constant",
    )
    trainer = trainer_class(
        model=base.model,
        args=on_one_gpu(arguments),
        reward_funcs=reward_function(run, model),
        train_dataset=rl_prompts(run, base),
        processing_class=base.tokenizer,
    )
    start_at_reference(base.model)
    return trainer


def watcher(run: Run, base: Base, judge: PreferenceModel) -> Watcher:
    """The first few prompts of the evaluation, which no stage trains on, and their readers."""
    count = run.preset.rl_watch_prompts
    red_team, helpful = (run.prompts(name, "eval", count) for name in ("red_team", "helpful"))
    return Watcher(run, base, load_classifier(base), judge, red_team, helpful)


def step_back(run: Run, base: Base, step: int) -> None:
    """The policy as it was when its KL, which `step` found too large, was last within the limit.

    That is the newest checkpoint of two steps before or earlier; without any, SL-CAI.
    """
    checkpoint = last_checkpoint(run.path("rl_cai", "checkpoints"), step - 2)
    if checkpoint is None:
        start_at_reference(base.model)
    else:
        weights = load_file(checkpoint / "adapter_model.safetensors")
        set_peft_model_state_dict(base.model, weights, adapter_name="default")


def reward_function(run: Run, model: PreferenceModel) -> Callable[..., list[float]]:
    """The preference model as TRL calls it; keeps every completion, once, on disk."""
    store = Rows(run.path("rl_cai", "completions.jsonl"), Completion)
    kept = {row.id for row in store.read()}

    def pm_reward(
        prompts: list[Any], completions: list[Any], trainer_state: Any, **_: Any
    ) -> list[float]:
        questions = [messages[-1]["content"] for messages in prompts]
        answers = [messages[-1]["content"] for messages in completions]
        rewards = model.scores(questions, answers).tolist()
        step = trainer_state.global_step + 1
        rows = [
            Completion(id=f"{step}/{i}", step=step, prompt=q, completion=a, reward=round(reward, 6))
            for i, (q, a, reward) in enumerate(zip(questions, answers, rewards, strict=True))
        ]
        fresh = [row for row in rows if row.id not in kept]
        kept.update(row.id for row in fresh)
        store.append(fresh)
        return rewards

    return pm_reward
