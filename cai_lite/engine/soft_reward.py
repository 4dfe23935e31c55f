"""TRL's trainer of preference models, taught soft labels (paper §4.1).

RewardTrainer knows a winner and a loser; the paper trains on P(A is better) itself, so the loss is
replaced, and only the loss.
"""

from dataclasses import dataclass
from typing import Any

import torch
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from .reward import soft_preference_loss


class SoftRewardTrainer(RewardTrainer):
    """RewardTrainer whose loss is −p·log σ(r_A − r_B) − (1−p)·log σ(r_B − r_A), p = P(A better)."""

    def compute_loss(  # type: ignore[no-untyped-def]
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        """Mean loss of a batch of pairs, in nats; the rewards are read at the end token."""
        p_a = inputs.pop("p_a")
        outputs = model(**inputs, use_cache=False)
        loss = soft_preference_loss(*outputs.logits.squeeze(-1).chunk(2), p_a)
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["chosen_ids", "rejected_ids", "p_a"]


@dataclass
class SoftPairs(DataCollatorForPreference):
    """Pads pairs as TRL does and keeps the soft label `p_a`, (pairs,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """First all A, then all B, padded on the right."""
        batch = super().torch_call(examples)
        return batch | {"p_a": torch.tensor([example["p_a"] for example in examples])}
