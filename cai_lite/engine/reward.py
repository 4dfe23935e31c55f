"""The preference model: LoRA and a scalar head on the base (paper §4.1); its loss, files, scores.

Saved, it is an adapter like any other and one vector: any base that carries the adapter can play
the preference model. TRL trains it (`soft_reward.py`); whoever only asks it needs no TRL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from ..errors import InputError
from ..presets import Preset
from ..prompts import chat
from ..records import Comparison
from .models import Base, add_adapter, lora_config, role
from .scoring import end_states


def soft_preference_loss(
    reward_a: torch.Tensor, reward_b: torch.Tensor, p_a: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of soft labels against σ(r_A − r_B), a scalar in nats; inputs (pairs,)."""
    return binary_cross_entropy_with_logits((reward_a - reward_b).float(), p_a)


def pair_rows(base: Base, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Token ids of both answers as chats that end in the end token, and the soft label."""

    def ids(prompt: str, answer: str) -> list[int]:
        return base.token_ids(base.render(chat(prompt, answer), reply=False))

    return [
        {"chosen_ids": ids(c.prompt, c.a), "rejected_ids": ids(c.prompt, c.b), "p_a": c.p_a}
        for c in comparisons
    ]


def add_scalar_adapter(base: Base, preset: Preset) -> None:
    """Put a fresh LoRA adapter and the trainable scalar head on a base loaded with `scalar`."""
    torch.manual_seed(preset.seed)
    base.model = get_peft_model(base.model, lora_config(preset, scalar=True))


def save_preference_model(base: Base, preset: Preset, folder: Path) -> None:
    """Write the adapter, without the head, as peft does, and the head beside it, in safetensors."""
    state = get_peft_model_state_dict(base.model)
    heads = [key for key in state if "score" in key]
    if len(heads) != 1:
        raise RuntimeError(f"expected one scalar head among the trained weights, found {heads}")
    lora_config(preset).save_pretrained(str(folder))
    save_file({"score": state.pop(heads[0]).float().cpu()}, folder / "head.safetensors")
    save_file({key: value.cpu() for key, value in state.items()}, _weights(folder))


def _weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


@dataclass(frozen=True)
class PreferenceModel:
    """The base as the preference model: its adapter's name and the head, (1, hidden)."""

    base: Base
    adapter: str
    head: torch.Tensor

    @torch.no_grad()
    def scores(
        self, prompts: Sequence[str], answers: Sequence[str], batch_size: int = 16
    ) -> torch.Tensor:
        """The reward of each answer to its prompt, (rows,), read at the end token."""
        texts = [
            self.base.render(chat(prompt, answer), reply=False)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        with role(self.base, self.adapter):
            states = end_states(self.base, texts, batch_size, groups=prompts)
        return states @ self.head[0]


def load_preference_model(base: Base, folder: Path, adapter: str = "pm") -> PreferenceModel:
    """Put a saved preference model's adapter on a base that may already play other roles."""
    head = folder / "head.safetensors"
    if not head.is_file():
        raise InputError(f"{folder} has no head.safetensors; run the stage preference_model first")
    add_adapter(base, folder, adapter)
    return PreferenceModel(base, adapter, load_file(head)["score"].float())
