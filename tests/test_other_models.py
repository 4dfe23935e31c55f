"""Every stage on a model like that of preset `gpu`: Mistral's kind of tokenizer and its template.

Untrained and small, so nothing it says is sound; what is tested is that no stage takes it for the
embedded model.
"""

import importlib
from pathlib import Path

import pytest
import torch
from conftest import TINY_SIZES, like_mistrals
from tokenizers import models, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from cai_lite.data import shipped_prompts
from cai_lite.presets import get_preset
from cai_lite.records import Answer, Comparison, Revision, Rows
from cai_lite.run import STAGES, Run, begin_run

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GPU = {name: getattr(get_preset("gpu"), name) for name in ("revision_layout", "labeller")}


def sentencepiece() -> PreTrainedTokenizerFast:
    """Words with the space before them, learned from the red-team prompts."""
    texts = [prompt.prompt for prompt in shipped_prompts("red_team")]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list("\n()[]/ABYN"),
    )  # fmt: skip
    untrained = models.BPE(unk_token="<unk>")
    found = like_mistrals(untrained, [*texts, *["Yes", "No"] * 200], trainer)
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_stages: None) -> Run:
    folder: Path = tmp_path_factory.mktemp("mistral")
    tokenizer = sentencepiece()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = TINY_SIZES | GPU | {"model": str(folder), "sl_batch": 2, "pm_batch": 2}
    found = begin_run(folder / "run", get_preset("cpu", **sizes))
    for name in STAGES:
        getattr(importlib.import_module(f"cai_lite.stages.{name}"), name)(found)
    return found


def test_every_stage_ends(run: Run) -> None:
    assert all(run.require(name) for name in STAGES)
    models = {row.model for row in Rows(run.path("evaluation", "answers.jsonl"), Answer).read()}
    assert models == {"base", "sl_cai", "rl_cai"}


def test_objections_and_revisions_have_their_spaces(run: Run) -> None:
    openings = run.constitution.revision_openings
    helpful = Rows(run.path("ai_feedback", "helpful.jsonl"), Comparison).read()
    worse = [row.a if row.p_a < 0.5 else row.b for row in helpful]
    begun = [(o, text) for text in worse for o in openings if text.startswith(o)]
    assert begun and all(text == o or not text[len(o)].isalpha() for o, text in begun)
    rows = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
    assert any(row.round and row.response for row in rows)
