"""Generation in batches: each row as it would be alone, whatever is beside it."""

from pathlib import Path

import pytest
import torch
from conftest import TINY_SIZES

from cai_lite.engine import sampling as sampling_module
from cai_lite.engine.models import Base, load_base
from cai_lite.engine.sampling import Sampling, generate
from cai_lite.presets import get_preset
from cai_lite.prompts import few_shot_prefix

TEXTS = [
    "The bread",
    "A somewhat longer text about bread and butter",
    "Who?",
    "One, two, three; four? Five.",
    "The bread is",
]
SEEDS = [11, 12, 13, 14, 15]
GREEDY = Sampling(10)
WARM = Sampling(10, temperature=0.8)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return load_base(get_preset("ci", model=str(tiny_model), quantization="none", **TINY_SIZES))


def ids_by_transformers(base: Base, text: str, tokens: int) -> list[int]:
    ids = torch.tensor([base.token_ids(text)])
    with torch.no_grad():
        found = base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=base.tokenizer.pad_token_id,
        )
    return found[0, ids.shape[1] :].tolist()


def by_transformers(base: Base, text: str, tokens: int) -> str:
    return base.tokenizer.decode(ids_by_transformers(base, text, tokens), skip_special_tokens=True)


def test_greedy_is_what_transformers_writes(base: Base) -> None:
    batch = generate(base, TEXTS, GREEDY, SEEDS)
    assert batch == [by_transformers(base, text, 10) for text in TEXTS]
    assert batch == [generate(base, [text], GREEDY, [0])[0] for text in TEXTS]
    assert len(set(batch)) > 1 and all(batch)


@pytest.mark.parametrize("how", [GREEDY, WARM])
def test_a_shared_prefix_changes_nothing(base: Base, how: Sampling) -> None:
    prefix = few_shot_prefix().removesuffix("\n")
    for text in TEXTS:  # the cut is one that the tokenizer makes too
        assert base.token_ids(prefix) + base.token_ids(text) == base.token_ids(prefix + text)
    shared = generate(base, TEXTS, how, SEEDS, prefix)
    assert shared == generate(base, [prefix + text for text in TEXTS], how, SEEDS)
    assert shared != generate(base, TEXTS, how, SEEDS)
    if how == GREEDY:
        assert shared == [by_transformers(base, prefix + text, 10) for text in TEXTS]


def test_a_rows_text_is_the_same_alone_and_in_any_batch_and_order(base: Base) -> None:
    batch = generate(base, TEXTS, WARM, SEEDS)
    alone = [generate(base, [t], WARM, [seed])[0] for t, seed in zip(TEXTS, SEEDS, strict=True)]
    assert batch == alone
    assert generate(base, TEXTS[::-1], WARM, SEEDS[::-1]) == batch[::-1]
    assert generate(base, TEXTS[1:3], WARM, SEEDS[1:3]) == batch[1:3]


def test_the_seed_is_the_rows_own(base: Base) -> None:
    same = generate(base, ["The bread"] * 4, WARM, [1, 2, 1, 3])
    assert same[0] == same[2] and len(set(same)) == 3
    torch.manual_seed(99)  # the global generator has no say
    assert generate(base, ["The bread"] * 4, WARM, [1, 2, 1, 3]) == same


def test_temperature_zero_needs_no_seed(base: Base) -> None:
    assert generate(base, TEXTS, GREEDY, SEEDS) == generate(base, TEXTS, GREEDY, SEEDS[::-1])


def test_samples_follow_the_models_distribution(base: Base) -> None:
    ids = torch.tensor([base.token_ids("The bread")])
    with torch.no_grad():
        p = (base.model(ids).logits[0, -1] / 0.3).softmax(-1)
    likeliest = base.tokenizer.decode([int(p.argmax())])
    rows = 400
    found = generate(base, ["The bread"] * rows, Sampling(1, 0.3), range(rows))
    share = sum(text == likeliest for text in found) / rows
    expected = float(p.max())
    assert 0.02 < expected < 0.98
    assert abs(share - expected) < 4 * (expected * (1 - expected) / rows) ** 0.5


def test_rows_that_end_leave_the_batch_and_disturb_no_other(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [ids_by_transformers(base, text, 10) for text in TEXTS]
    early = {i: ids[i][i] for i in range(4)}  # row i shall end with its own i-th token
    stops = sampling_module._stop_tokens(base, one_line=False)
    stops[list(early.values())] = True
    widths: list[int] = []
    body = base.body.forward

    def watched(tokens, *args, **options):  # type: ignore[no-untyped-def]
        widths.append(len(tokens))
        return body(tokens, *args, **options)

    monkeypatch.setattr(base.body, "forward", watched)
    monkeypatch.setattr(sampling_module, "_stop_tokens", lambda *_: stops)
    found = generate(base, TEXTS, GREEDY, SEEDS)
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0] == len(TEXTS)
    for i, text in enumerate(found):
        first = next((k for k, token in enumerate(ids[i]) if stops[token]), None)
        kept = ids[i] if first is None else ids[i][: first + 1]
        assert text == base.tokenizer.decode(kept)


def test_a_row_that_ends_at_once_is_empty(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(base, TEXTS, GREEDY, SEEDS)
    head, first = base.head.forward, [True]

    def ends_the_second_row(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        if first.pop() if first else False:
            logits[1, base.tokenizer.eos_token_id] = 1e4
        return logits

    monkeypatch.setattr(base.head, "forward", ends_the_second_row)
    found = generate(base, TEXTS, GREEDY, SEEDS)
    assert found == [expected[0], "", *expected[2:]]
    first.append(True)
    assert generate(base, TEXTS[:2], GREEDY, SEEDS[:2]) == [expected[0], ""]


def test_a_batch_that_ends_at_once_is_empty(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), base.head.weight.shape[0])
        logits[:, base.tokenizer.eos_token_id] = 1e4
        return logits

    monkeypatch.setattr(base.head, "forward", ends)
    assert generate(base, TEXTS, WARM, SEEDS) == [""] * len(TEXTS)


def test_one_line_ends_at_the_line_break(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    newline = base.token_ids("\n")[0]
    stops = sampling_module._stop_tokens(base, one_line=True)
    assert stops[newline] and stops[base.tokenizer.eos_token_id]
    for text in ("\n\n", ".\n", "Hello.\n"):
        assert stops[base.token_ids(text)].any()
    assert not stops[base.token_ids("Hello, how are you?")].any()
    head = base.head.forward
    steps = iter(range(100))

    def breaks_the_line_third(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        if next(steps) == 2:
            logits[:, newline] = 1e4
        return logits

    monkeypatch.setattr(base.head, "forward", breaks_the_line_third)
    (found,) = generate(base, ["The bread"], Sampling(10, one_line=True), [0])
    monkeypatch.undo()
    (whole,) = generate(base, ["The bread"], Sampling(2), [0])
    assert found == whole and "\n" not in found
    steps = iter(range(100))
    monkeypatch.setattr(base.head, "forward", breaks_the_line_third)
    (several,) = generate(base, ["The bread"], Sampling(10), [0])
    assert several.startswith(whole + "\n") and len(several) > len(found) + 1


def test_the_length_is_the_limit(base: Base) -> None:
    for tokens in (1, 3):
        expected = [by_transformers(base, text, tokens) for text in TEXTS]
        assert generate(base, TEXTS, Sampling(tokens), SEEDS) == expected


def test_control_tokens_are_never_part_of_the_text(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = base.head.forward
    start = base.tokenizer.convert_tokens_to_ids("<|im_start|>")

    def writes_control(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        logits[:, start] = 1e4
        return logits

    monkeypatch.setattr(base.head, "forward", writes_control)
    assert generate(base, ["The bread"], Sampling(3), [0]) == [""]
