"""Memory of an RL step on a 7B base where no GPU is at hand: measured by layer on a CPU.

    python benchmarks/memory_by_layers.py [1,2,4 | 32] [field=value …]

The model has the width, the heads and the vocabulary of `memory.py`'s 7B, random weights, and only
so many of its 32 layers; 4-bit weights stay packed, states are kept at the layers' borders alone
and all completions learn at once, as on a GPU. The completions are random tokens of full length:
writing them would take two hours with all 32 layers, and holds less. What a process holds at most
grows by the same with every layer; a line through the sizes says what 32 would hold. Adam's two
states, made after the first step, are counted in. Freed blocks are given back at once, or they
would look like memory that is held. A CPU computes in float32, so a GPU in bfloat16 holds less; its
own context comes on top. The last line on stdout is JSON, in MB.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import memory
import numpy as np
import torch

from cai_lite.engine import packed
from cai_lite.engine.models import load_base
from cai_lite.engine.training import train
from cai_lite.presets import get_preset
from cai_lite.run import forget_peak, open_run, peak_memory_mb
from cai_lite.stages import rl_cai

WHOLE = memory.SHAPES["7B"]["num_hidden_layers"]
STEP = {"rl_steps": 1, "rl_prompts": 1, "rl_generations": 4, "rl_tokens": 256}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # bytes from which a freed block is


def as_on_a_gpu() -> None:
    """Packed weights, gradient checkpointing, every completion in one batch."""
    common = rl_cai.common_arguments
    rl_cai.common_arguments = lambda *a: common(*a) | {"gradient_checkpointing": True}
    rl_cai._MICRO_BATCH["cpu"] = rl_cai._MICRO_BATCH["cuda"]
    packed._ROOM = 0


def random_answer(input_ids: torch.Tensor, tokens: int, **_: Any) -> torch.Tensor:
    """In place of `generate`: each prompt, (rows, tokens), with an answer that nothing ends."""
    drawn = torch.randint(100, 40_000, (len(input_ids), tokens))
    return torch.cat([input_ids, drawn], dim=1)


def measure(folder: str) -> dict[str, Any]:
    """What the process holds before and at most during one step, and what Adam will keep."""
    as_on_a_gpu()
    run = open_run(folder)
    trainer = memory.one(run, load_base(run.preset))
    trainer.model.generate = partial(random_answer, tokens=run.preset.rl_tokens)
    forget_peak()  # loading read the weights in bfloat16
    before = peak_memory_mb()
    train(run, trainer, "bench", "one RL step")
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {"loaded": before, "peak": peak_memory_mb() + 8 * trained // 10**6}


def with_layers(layers: int, fields: dict[str, str]) -> dict[str, Any]:
    """`measure` of a model with so many layers, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        model = memory.random_model("7B", Path(scratch, "model"), num_hidden_layers=layers)
        preset = get_preset("cpu", rl_helpful_share=0, model=model, **(STEP | fields))
        folder = memory.prepared(preset, Path(scratch, "run"))
        return memory.in_a_process(f"{layers} layers", folder, script=__file__, **GIVEN_BACK)


def main(*arguments: str) -> None:
    """Measure each number of layers and draw the line on to the whole model."""
    fields = dict(a.split("=", 1) for a in arguments if "=" in a)
    sizes = next((a for a in arguments if "=" not in a), "1,2,4")
    layers = [int(n) for n in sizes.split(",")]
    found = [with_layers(n, fields) for n in layers]
    said: dict[str, Any] = {"layers": dict(zip(map(str, layers), found, strict=True))}
    for name in ("loaded", "peak") if len(layers) > 1 else ():
        slope, start = np.polyfit(layers, [one[name] for one in found], 1)
        said[name] = {"a_layer": round(slope), f"{WHOLE}_layers": round(start + WHOLE * slope)}
    print(json.dumps(said))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(*sys.argv[1:])
