"""Fixtures: a model of the real architecture, small and untrained, with the real tokenizer."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # the tiny model gains nothing from a second thread

import numpy as np
import pytest  # noqa: E402

TINY_SIZES = dict(
    red_team_prompts=6, rounds=2, candidates=2, helpful_share=0.33, contrast_prompts=8,
    feedback_prompts=8, bias_pairs=2, rl_steps=2, rl_prompts=2, rl_generations=2, rl_tokens=8,
    eval_red_team=4, eval_helpful=4, eval_borderline=4, eval_tokens=8, response_tokens=12,
    critique_tokens=8, revision_tokens=10, batch_size=4, bootstrap=100, lora_rank=2, sl_epochs=1,
    pm_epochs=1, principles_per_pair=2,
)  # fmt: skip


SMALL_CONSTITUTION = """\
name: small
description: one of each
critique_revision:
  - id: one
    critique_request: What is wrong?
    revision_request: Mend it.
comparison:
  - id: one
    principle: Choose the better response.
"""


def save_pushed(run, name, seed):
    """An adapter under the run's stage that changes something: B, zero at first, gets numbers."""
    import torch

    from cai_lite.engine.models import load_base, new_adapter, save_adapter

    base = load_base(run.preset)
    new_adapter(base, run.preset)
    torch.manual_seed(seed)
    for key, weight in base.model.named_parameters():
        if "lora_B" in key:
            weight.data += 0.1 * torch.randn_like(weight)
    save_adapter(base, run.path(name, "adapter"))


def like_mistrals(pieces, texts=(), trainer=None):
    """A tokenizer in which a word's space is the word's, of these pieces or what texts teach."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), strip])
    if trainer is not None:
        tokenizer.train_from_iterator(texts, trainer)
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


class FakeReader:
    """In the outcome classifier's place, where it is not what is tested: outcomes in turn.

    It keeps what it was given to read.
    """

    accuracy = {
        "held_out": {"n": 2, "accuracy": 0.5, "accuracy_ci": [0.1, 0.9], "recall": {"helps": 0.5}}
    }

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def outcomes(self, prompts, answers):
        from cai_lite.engine.outcomes import likeliest

        return likeliest(self.read(prompts, answers))

    def read(self, prompts, answers):
        self.seen += zip(prompts, answers, strict=True)
        return np.eye(5)[[i % 5 for i in range(len(answers))]]


@pytest.fixture(scope="module")
def tiny_stages():
    """Whole stages of a model that says nothing sound, without the model that reads outcomes."""
    from cai_lite.stages import critique_revision, evaluation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(critique_revision, "revision_fault", lambda *_: "")
        patch.setattr(evaluation, "load_classifier", lambda base: FakeReader())
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with an untrained three-layer Llama and the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from cai_lite.engine.embedded import embedded_model

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    torch.set_num_threads(1)  # so small a model waits for its threads more than it computes
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_preset(tiny_model):
    """The ci preset on the tiny model, every size small; float32 so that numbers are exact."""
    from cai_lite.presets import get_preset

    return get_preset("ci", model=str(tiny_model), quantization="none", **TINY_SIZES)


@pytest.fixture
def tiny_base(tiny_preset):
    """The tiny model, loaded."""
    from cai_lite.engine.models import load_base

    return load_base(tiny_preset)
