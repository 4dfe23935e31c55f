"""What all trainers share, where a machine with GPUs differs from this one."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

from cai_lite.engine.models import Base
from cai_lite.engine.training import common_arguments, on_one_gpu
from cai_lite.presets import get_preset
from cai_lite.run import begin_run


@pytest.mark.parametrize("visible, used", [(0, 0), (1, 1), (2, 1)])
def test_of_several_gpus_a_trainer_uses_one(tmp_path, visible: int, used: int) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    arguments._n_gpu = visible
    assert arguments.n_gpu == visible  # else transformers counts them elsewhere now
    assert on_one_gpu(arguments).n_gpu == used


def test_rl_keeps_every_step_to_step_back_to(tmp_path, tiny_base: Base) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    gpu = dataclasses.replace(tiny_base, device=torch.device("cuda"))
    every = {
        stage: common_arguments(run, gpu, stage)["save_steps"] for stage in ("sl_cai", "rl_cai")
    }
    assert every == {"sl_cai": 10, "rl_cai": 1}
    assert common_arguments(run, tiny_base, "sl_cai")["save_steps"] == 1
