"""The preference model: LoRA and a scalar head on the base, trained on soft labels.

TRL's RewardTrainer knows a winner and a loser; the paper trains on P(A is better) itself, so the
loss is replaced, and only the loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from ..errors import InputError
from ..presets import Preset
from ..prompts import chat
from ..records import Comparison
from .models import Base, add_adapter, lora_config, role
