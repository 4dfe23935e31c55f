"""A tokenizer like Mistral's, in which a word's space belongs to the word, not to what is before.

Decoded alone, such a word loses its space; tokenised alone, it gets one that it may not have.
"""

import dataclasses
import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cai_lite.engine import sampling
from cai_lite.engine.models import Base
from cai_lite.engine.sampling import Sampling, generate
from cai_lite.engine.scoring import choice_logprobs


def like_mistrals() -> PreTrainedTokenizerFast:
    """A token a letter, and one for each that begins a word, with the space before it."""
    begins = [("▁", letter) for letter in string.ascii_letters + "("]
    pieces = ["<unk>", "<s>", "</s>", "▁", *string.ascii_letters, "(", ".", *map("".join, begins)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, begins, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), strip])
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    found.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    return found


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return dataclasses.replace(tiny_base, tokenizer=like_mistrals())


def test_the_tokenizer_does_what_mistrals_does(base: Base) -> None:
    assert base.tokenizer.decode(base.token_ids("It is.")) == "It is."
    assert base.tokenizer.decode(base.token_ids("It is.")[2:]) == "is."  # no space
    assert base.tokenizer.convert_ids_to_tokens(base.token_ids("A")) == ["▁A"]
    assert base.tokenizer.convert_ids_to_tokens(base.token_ids("is (A")) == ["▁i", "s", "▁(", "A"]


def test_a_word_behind_an_opening_keeps_its_space(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = base.token_ids("to lie.")
    monkeypatch.setattr(sampling, "_continue", lambda batch, *_: [written] * len(batch.places))
    openings = ["It would be wrong", "", "No."]
    found = generate(base, ["Why"] * 3, Sampling(4), [0] * 3, openings=openings)
    assert found == [" to lie.", "to lie.", " to lie."]


def test_a_choice_behind_a_bracket_is_no_word(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, inside = (base.tokenizer.convert_tokens_to_ids(piece) for piece in ("▁A", "A"))
    logits = torch.zeros(1, base.head.weight.shape[0])
    logits[0, alone], logits[0, inside] = 1.0, 2.0
    monkeypatch.setattr("cai_lite.engine.scoring.next_logits", lambda *_: [([0], logits)])
    logs = logits.log_softmax(-1)[0]
    assert choice_logprobs(base, ["It is ("], ["A"], 1)[0, 0] == logs[inside]
    assert choice_logprobs(base, ["It is"], ["A"], 1)[0, 0] == logs[alone]
