"""Tokenizers unlike the embedded model's.

In Mistral's a word's space belongs to the word: decoded alone it loses it, tokenised alone it gets
one that it may not have. Llama-3's and Qwen's have a token for a bracket and a letter. Gemma's adds
line breaks to its vocabulary, and most begin a text with a token of its own.
"""

import dataclasses
import string

import pytest
import torch
from conftest import like_mistrals
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from cai_lite.engine import sampling
from cai_lite.engine.models import Base
from cai_lite.engine.sampling import Sampling, generate
from cai_lite.engine.scoring import choice_token


def by_letters() -> PreTrainedTokenizerFast:
    """A token a letter, and one for each that begins a word, with the space before it."""
    begins = [("▁", letter) for letter in string.ascii_letters + "("]
    pieces = ["<unk>", "<s>", "</s>", "▁", *string.ascii_letters, "(", ".", *map("".join, begins)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    found = like_mistrals(models.BPE(vocabulary, begins, unk_token="<unk>"))
    found.pad_token = found.unk_token
    found.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    return found


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return dataclasses.replace(tiny_base, tokenizer=by_letters())


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
    assert found == [" to lie."] * 3  # where the opening is the text's own end as well


def choice_read(base: Base, text: str) -> str:
    """Which token's probability is read for the choice A behind a text."""
    return base.tokenizer.convert_ids_to_tokens(choice_token(base, "A", text))


def test_a_choice_behind_a_bracket_is_no_word(base: Base) -> None:
    assert choice_read(base, "It is (") == "A"
    assert choice_read(base, "It is") == "▁A"


def test_a_choice_is_found_where_bracket_and_letter_make_a_token(tiny_base: Base) -> None:
    pieces = ["</s>", "x", " ", "(", "A", " (", "(A"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(" ", "("), ("(", "A")], unk_token="</s>"))
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    base = dataclasses.replace(tiny_base, tokenizer=whole)
    assert base.tokenizer.convert_ids_to_tokens(base.token_ids("(A")) == ["(A"]
    assert choice_read(base, "x (") == "A"


def test_a_prompt_begins_as_the_models_texts_do(base: Base) -> None:
    start, text = base.tokenizer.bos_token_id, "It is"
    assert base.prompt_ids(text) == base.token_ids(text)  # this one begins a text with nothing
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    base.tokenizer.backend_tokenizer.post_processor = template
    base = dataclasses.replace(base)  # what was found out of the tokenizer before is forgotten
    assert base.prompt_ids(text) == [start, *base.token_ids(text)]
    assert base.prompt_ids("<s>" + text) == base.token_ids("<s>" + text)  # a template wrote it


def test_a_line_break_marks_no_turn(base: Base) -> None:
    base.tokenizer.add_tokens(["\n", "\n\n"])
    assert base.neutral("One.\n\nTwo.\n") == "One.\n\nTwo.\n"


def test_all_that_ends_a_turn_ends_an_answer(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dataclasses.replace(base)
    turn = base.tokenizer.convert_tokens_to_ids("(")
    ends = [base.tokenizer.eos_token_id, turn]
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", ends)
    logits = torch.zeros(1, base.head.weight.shape[0])
    logits[0, turn] = 1e4
    monkeypatch.setattr(base.head, "forward", lambda hidden: logits.expand(len(hidden), -1))
    assert generate(base, ["Why"], Sampling(4), [0]) == [""]
