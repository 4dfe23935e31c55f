"""What is watched while RL-CAI trains, and when it must stop. None of it touches the reward.

A reward that rises says only that this preference model is pleased. Beside it stand how far the
policy went from SL-CAI, how alike its completions became, and of answers to prompts that no stage
trains on: their reward, what the outcome classifier says, and the prompts' own checks.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainerCallback

from ..answers import HARMLESS
from ..data import Prompt
from ..presets import Preset
from ..prompts import chat
from ..records import Completion, Rows
from ..run import Run
from ..texts import commonest_opening
from .models import Base, save_adapter
from .outcomes import OutcomeClassifier
from .reward import PreferenceModel
from .sampling import Sampling, generate

Step = dict[str, Any]
_RECENT = 4  # steps whose KL is averaged
_LOOK = ("held_out_reward", "harmlessness", "broken", "boilerplate", "helpfulness")


@dataclass(frozen=True)
class Watcher:
    """A few held-out prompts, and what reads the policy's answers to them."""

    run: Run
    base: Base
    classifier: OutcomeClassifier
    judge: PreferenceModel
    red_team: Sequence[Prompt]
    helpful: Sequence[Prompt]

    def look(self) -> Step:
        """Mean reward on held-out prompts, and shares 0..1, of the policy as it stands."""
        answers = self._answers([*self.red_team, *self.helpful])
        asked = [prompt.prompt for prompt in self.red_team]
        said, helped = answers[: len(asked)], answers[len(asked) :]
        outcomes = self.classifier.outcomes(asked, said)
        checked = zip(self.helpful, helped, strict=True)
        held = [prompt.check.holds(answer) for prompt, answer in checked if prompt.check]
        found = (
            float(self.judge.scores(asked, said).mean()),
            float(np.mean([outcome in HARMLESS for outcome in outcomes])),
            outcomes.count("broken") / len(outcomes),
            commonest_opening(said)[1],
            float(np.mean(held)) if held else None,
        )
        rounded = (None if number is None else round(number, 4) for number in found)
        return dict(zip(_LOOK, rounded, strict=True))

    def _answers(self, prompts: Sequence[Prompt]) -> list[str]:
        preset, texts = self.run.preset, [self.base.render(chat(p.prompt)) for p in prompts]
        seeds = [self.run.seed("watched", prompt.id) for prompt in prompts]
        sampling = Sampling(preset.eval_tokens, preset.eval_temperature)
        return generate(self.base, texts, sampling, seeds, batch_size=preset.batch_size)


class Watch(TrainerCallback):
    """Adds to each step's log what is watched, and stops a policy that went too far.

    `on_step` is called with the rows so far, as a live plot wants them. What was logged is kept in
    the trainer's own history, so that a run that resumes has it all.
    """

    def __init__(self, watcher: Watcher, on_step: Callable[[list[Step]], None] | None) -> None:
        self.watcher = watcher
        self.on_step = on_step
        self.looked: Step = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every = self.watcher.run.preset.rl_watch_every
        due = every and state.global_step % every == 0
        self.looked = self.watcher.look() if due else {}
        if due and state.global_step:
            keep_adapter(self.watcher.run, self.watcher.base, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "reward" not in logs:
            return
        run = self.watcher.run
        state.log_history[-1] |= self.looked | {"opening": _opening(run, state.global_step)}
        steps = steps_of(state.log_history)
        if too_far(run.preset, steps):
            control.should_training_stop = True
        if self.on_step:
            self.on_step(steps)


def too_far(preset: Preset, steps: Sequence[Step]) -> str:
    """Why RL stops after these steps, in words; empty while the KL is within the limit.

    It is the mean of the last few steps: one step's few completions say too little.
    """
    recent = [step["kl"] * step["length"] for step in steps[-_RECENT:]]
    total = sum(recent) / max(1, len(recent))
    if total <= preset.rl_max_kl:
        return ""
    return (
        f"step {steps[-1]['step']}: {total:.1f} nats a completion from SL-CAI over the last "
        f"{len(recent)} steps, at most {preset.rl_max_kl:g} are allowed (rl_max_kl)"
    )


def keep_adapter(run: Run, base: Base, step: int) -> None:
    """Keep the policy as it is after so many steps, in `rl_cai/by_step/`, for the evaluation."""
    place = run.path("rl_cai", "by_step", str(step))
    partial = place.with_name(f"{step}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    save_adapter(base, partial)
    shutil.rmtree(place, ignore_errors=True)
    partial.replace(place)


def _opening(run: Run, step: int) -> float:
    """Share of the commonest opening of five words among the completions of one step."""
    rows = Rows(run.path("rl_cai", "completions.jsonl"), Completion).read()
    return round(commonest_opening([row.completion for row in rows if row.step == step])[1], 4)


def steps_of(history: Sequence[Step]) -> list[Step]:
    """What is watched of each step that was logged, (steps,)."""
    return [step_of(entry) for entry in history if "reward" in entry]


def step_of(entry: Step) -> Step:
    """Mean reward, KL in nats a token, entropy, length in tokens, and what a Watch added.

    All of it tells of the policy as it was before the step's update.
    """
    numbers = {name: entry.get(name, 0.0) for name in ("reward", "kl", "entropy")}
    added = {name: entry[name] for name in ("opening", *_LOOK) if name in entry}
    return {"step": entry["step"], **numbers, "length": entry["completions/mean_length"], **added}
