"""RL-CAI: reinforcement learning from the preference model's reward (paper §4.2).

The paper's PPO is gone from TRL; RLOO (default) and GRPO are used as published. Policy, reference
and preference model are adapters of one base: `default`, `ref` (a frozen copy of SL-CAI) and `pm`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ..data import shipped_prompts
from ..engine.models import Base, add_adapter, load_base
from ..engine.reward import PreferenceModel, load_preference_model
from ..engine.training import common_arguments, forget_checkpoints, train
from ..prompts import chat
from ..records import Completion, Rows, write_json
from ..run import Run, stage
from .sl_cai import save_adapter
