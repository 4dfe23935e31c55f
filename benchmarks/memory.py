"""Memory and time of an RL step on one base, with a copy of the base a role, and by TRL alone.

    python benchmarks/memory.py [1.7B | 7B] [field=value …]

Without a size the embedded model; 1.7B and 7B are models with random weights in the shape of
SmolLM2-1.7B and Mistral-7B (with SmolLM2's vocabulary), for machines with a GPU and no hub. Fields
are those of a preset. Every way runs in a process of its own, the same steps with the same seed:
*one*: policy, reference and preference model are adapters of one base, as `cai-lite rl-cai` has it;
*copies*: each has a base of its own; *free*: as one, but the reward costs nothing, which is TRL's
own step. Peak memory is of the GPU, or of the process on a CPU; the first step is not timed. The
last line on stdout is JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback
from trl.trainer.utils import add_fused_lm_head

from cai_lite.engine.models import Base, add_adapter, load_base, new_adapter, save_adapter
from cai_lite.engine.reward import (
    PreferenceModel,
    add_scalar_adapter,
    load_preference_model,
    save_preference_model,
)
from cai_lite.engine.training import train, unpacked
from cai_lite.presets import Preset, get_preset
from cai_lite.run import Run, begin_run, open_run, peak_memory_mb
from cai_lite.stages.rl_cai import make_trainer, put_on_roles

SHAPES = {
    "1.7B": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=49152, tie_word_embeddings=True,
    ),
    "7B": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=49152, tie_word_embeddings=False,
    ),
}  # fmt: skip
WAYS = ("one", "copies", "free")
STEPS = 4


def random_model(size: str, folder: Path, **changes: int) -> str:
    """A folder with random weights of that shape and the embedded model's tokenizer."""
    torch.manual_seed(0)
    shape = SHAPES[size] | changes
    config = LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")  # written whole it would be held twice
    load_base(get_preset("ci")).tokenizer.save_pretrained(folder)
    return str(folder)


def prepared(preset: Preset, folder: Path) -> str:
    """The folder of a run that needs but the RL stage; its adapters are made in a process of their
    own, so that none of this one's memory is taken while others are measured."""
    run = begin_run(folder, preset)
    subprocess.run([sys.executable, __file__, "--prepare", str(run.folder)], check=True)
    return str(run.folder)


def prepare(folder: str) -> None:
    """Fresh adapters where SL-CAI and the preference model would have left theirs."""
    run = open_run(folder)
    base = load_base(run.preset)
    new_adapter(base, run.preset)
    save_adapter(base, run.path("sl_cai", "adapter"))
    judge = load_base(run.preset, scalar=True)
    add_scalar_adapter(judge, run.preset)
    save_preference_model(judge, run.preset, run.path("preference_model", "adapter"))


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class FreeReward:
    """In the preference model's place: rewards that cost nothing."""

    def scores(self, prompts: list[str], answers: list[str]) -> torch.Tensor:
        return torch.tensor([float(len(answer)) for answer in answers])


def one(run: Run, base: Base) -> Any:
    """All roles on one base."""
    return make_trainer(run, base, put_on_roles(run, base))


def free(run: Run, base: Base) -> Any:
    """Policy and reference on one base, as TRL has it, and a reward for nothing."""
    add_adapter(base, run.path("sl_cai", "adapter"), "default", trainable=True)
    return make_trainer(run, base, FreeReward())  # type: ignore[arg-type]


def copies(run: Run, base: Base) -> Any:
    """A base for the policy, one for the reference and one for the preference model."""
    reference, judge = load_base(run.preset), load_base(run.preset)
    model: PreferenceModel = load_preference_model(judge, run.path("preference_model", "adapter"))
    add_fused_lm_head(reference.model, temperature=1.0)  # as the trainer does with a reference
    add_adapter(reference, run.path("sl_cai", "adapter"), "default")
    add_adapter(base, run.path("sl_cai", "adapter"), "default", trainable=True)
    trainer = make_trainer(run, base, model)  # last, for it sets the seed of what is drawn
    trainer.ref_model = reference.model
    trainer.judge = judge.model
    return trainer


@contextmanager
def others_unpacked(trainer: Any) -> Iterator[None]:
    """The copies compute as the policy's base does while it trains."""
    with ExitStack() as stack:
        for name in ("ref_model", "judge"):
            model = getattr(trainer, name, None)
            if model is not None:
                stack.enter_context(unpacked(model))
        yield


def measure(folder: str, way: str) -> dict[str, Any]:
    """Peak memory in MB and seconds a step of one way; runs in a process of its own."""
    run = open_run(folder)
    ways: dict[str, Callable[[Run, Base], Any]] = {"one": one, "copies": copies, "free": free}
    trainer, clock = ways[way](run, load_base(run.preset)), Clock()
    trainer.add_callback(clock)
    with others_unpacked(trainer):
        history = train(run, trainer, f"bench_{way}", f"RL steps, {way}")
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    seconds = [round(s, 2) for s in clock.seconds]
    return {"peak_mb": peak_memory_mb(), "seconds": seconds, "rewards": rewards}


def in_a_process(
    name: str, *arguments: str, script: str = __file__, **environment: str
) -> dict[str, Any]:
    """What a script's `measure` finds, from a fresh process, so that no peak is another's."""
    command = [sys.executable, script, "--measure", *arguments]
    env = os.environ | environment
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(name, json.dumps(found), flush=True)
    return found


def main(*arguments: str) -> None:
    """Measure all ways and print the ratios."""
    size = next((a for a in arguments if a in SHAPES), "")
    fields = dict(a.split("=", 1) for a in arguments if "=" in a)
    with tempfile.TemporaryDirectory() as scratch:
        if size:
            fields["model"] = random_model(size, Path(scratch, "model"))
        preset = get_preset("cpu", rl_steps=STEPS, rl_helpful_share=0, **fields)
        folder = prepared(preset, Path(scratch, "run"))
        found = {way: in_a_process(way, folder, way) for way in WAYS}
    step = {way: statistics.median(numbers["seconds"][1:]) for way, numbers in found.items()}
    peak = {way: numbers["peak_mb"] for way, numbers in found.items()}
    ratios = {
        "memory_ratio": round(peak["one"] / peak["copies"], 3),
        "step_ratio": round(step["one"] / step["copies"], 3),
        "step_ratio_free_reward": round(step["one"] / step["free"], 3),
    }
    print(json.dumps({"peak_mb": peak, "step_seconds": step} | ratios))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:4])))
    elif sys.argv[1:2] == ["--prepare"]:
        prepare(sys.argv[2])
    else:
        main(*sys.argv[1:])
