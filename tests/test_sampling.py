"""Generation in batches: each row as it would be alone, whatever is beside it."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import TINY_SIZES

from cai_lite.constitution import load_constitution
from cai_lite.engine import sampling as sampling_module
from cai_lite.engine.cache import attend_apart, causal_bias
from cai_lite.engine.models import Base, load_base, new_adapter, role
from cai_lite.engine.packed import packed
from cai_lite.engine.sampling import Sampling, generate, last_states
from cai_lite.presets import get_preset
from cai_lite.progress import Progress
from cai_lite.prompts import chat, few_shot_prefix

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
OPENINGS = ["I don't", "No.", "", "It would be unkind to", "I don't"]


def loaded(model: Path, quantization: str) -> Base:
    sizes = {**TINY_SIZES, "quantization": quantization}
    return load_base(get_preset("ci", model=str(model), **sizes))


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return loaded(tiny_model, "none")


@pytest.fixture(scope="module")
def four_bit(tiny_model: Path) -> Base:
    """In NF4, and under an adapter that does something."""
    base = loaded(tiny_model, "nf4")
    new_adapter(base, get_preset("ci"), "default")
    torch.manual_seed(1)
    for name, weight in base.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    base.model.eval()
    return base


@pytest.fixture
def widths(base: Base, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """(rows, width) of all that the body reads from now on."""
    read: list[torch.Size] = []
    body = base.body.forward

    def watched(*args, **options):  # type: ignore[no-untyped-def]
        read.extend(tokens.shape for tokens in args)  # `generate` of transformers names its own
        return body(*args, **options)

    monkeypatch.setattr(base.body, "forward", watched)
    return read


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


def test_four_bits_and_an_adapter_write_what_transformers_writes_with_them(four_bit: Base) -> None:
    found = {}
    for name in ("default", None):  # under the adapter, and the base below it
        with role(four_bit, name):
            found[name] = generate(four_bit, TEXTS, GREEDY, SEEDS)
            assert found[name] == [by_transformers(four_bit, text, 10) for text in TEXTS]
    assert found["default"] != found[None]


@pytest.mark.parametrize("how", [GREEDY, WARM])
@pytest.mark.parametrize("prefix", ["", "Read this first.\n"])
def test_rows_are_sorted_and_batched_inside_and_come_back_in_order(
    base: Base, how: Sampling, prefix: str
) -> None:
    texts, seeds = TEXTS * 3, range(15)
    whole = generate(base, texts, how, seeds, prefix)
    for size in (1, 2, 7):
        assert generate(base, texts, how, seeds, prefix, batch_size=size) == whole
    assert generate(base, texts[::-1], how, seeds[::-1], prefix, batch_size=4) == whole[::-1]
    assert len(set(whole)) > 4


def test_a_batch_is_never_larger_than_asked(base: Base, widths: list[torch.Size]) -> None:
    generate(base, TEXTS * 3, GREEDY, range(15), batch_size=4)
    assert max(rows for rows, _ in widths) == 4


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("how", [GREEDY, WARM])
@pytest.mark.parametrize("prefix", ["", "Read this first.\n"])
def test_openings_are_part_of_the_prompt(
    base: Base, how: Sampling, prefix: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not apart:  # as on a GPU, where every row holds a copy of what is shared
        monkeypatch.setattr(sampling_module, "keeps_apart", lambda *_: False)
    texts = [base.render(chat(text)) for text in ("Who?", TEXTS[1])]
    asked = list(itertools.product(texts, OPENINGS))
    seeds = range(20, 20 + len(asked))
    joined = [text + opening for text, opening in asked]
    expected = generate(base, joined, how, seeds, prefix, batch_size=1)
    texts, openings = zip(*asked, strict=True)
    found = generate(base, texts, how, seeds, prefix, openings=openings)
    # a draw that falls within rounding of a border between two tokens may go either way
    allowed = 0 if how == GREEDY else len(seeds) // 4
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= allowed
    assert generate(base, texts, how, seeds, prefix) != expected
    if how == GREEDY:
        assert expected == [by_transformers(base, prefix + text, 10) for text in joined]


def test_each_text_is_read_once_whatever_its_openings(base: Base, widths: list[torch.Size]) -> None:
    texts = [base.render(chat(text)) for text in ("Who?", TEXTS[1])]
    asked = list(itertools.product(texts, OPENINGS))
    texts, openings = zip(*asked, strict=True)
    generate(base, texts, Sampling(1), range(len(asked)), few_shot_prefix(), openings=openings)
    heads = [len(base.token_ids(text)) - 1 for text in dict.fromkeys(texts)]
    common = len(base.token_ids(base.render(chat("~")).split("~")[0]))
    shots = len(base.token_ids(few_shot_prefix()))
    assert widths[0] == (1, shots + common)
    assert widths[1] == (2, max(heads) - common)  # both texts, once each
    assert len(widths) == 3 and widths[2][0] == len(asked)  # their last tokens and the openings
    assert widths[2][1] == 1 + max(len(base.token_ids(opening)) for opening in OPENINGS)


def test_an_opening_behind_a_chat_is_tokenised_as_in_one_text(base: Base) -> None:
    openings = load_constitution("harmlessness").revision_openings
    assert len(openings) > 3
    for text in ("Who?", "One.\n\nTwo", "Is it 3"):
        asked = base.render(chat(text, system="Be kind."))
        assert asked.endswith("\n")
        for opening in [*openings, *OPENINGS, "A", "1. First"]:
            joint = base.token_ids(asked + opening)
            assert base.token_ids(asked) + base.token_ids(opening) == joint


def test_texts_of_one_token_and_equal_texts(base: Base) -> None:
    one = "Who"
    assert len(base.token_ids(one)) == 1
    expected = by_transformers(base, one, 10)
    assert generate(base, [one], GREEDY, [0]) == [expected]
    assert generate(base, [one] * 3, GREEDY, range(3)) == [expected] * 3
    assert generate(base, [one, *TEXTS], GREEDY, range(6))[0] == expected
    assert generate(base, [one, *TEXTS], GREEDY, range(6), "Hm.\n")[0] == by_transformers(
        base, "Hm.\n" + one, 10
    )


def test_nothing_asked_is_nothing_written(base: Base) -> None:
    assert generate(base, [], GREEDY, []) == []
    assert list(last_states(base, [], [])) == []


def test_tokens_are_counted_as_they_are_written(base: Base) -> None:
    counted: list[int] = []
    found = generate(base, TEXTS, Sampling(4), SEEDS, batch_size=3, on_tokens=counted.append)
    ids = [ids_by_transformers(base, text, 4) for text in TEXTS]
    assert len(found) == 5 and sum(counted) == sum(map(len, ids))
    assert counted == [3] * 4 + [2] * 4


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_in_two_parts_is_attention_over_both(dtype: torch.dtype, apart: float) -> None:
    rows, heads, groups, size, before, columns, width = 3, 6, 2, 8, 5, 7, 4
    torch.manual_seed(0)
    query = torch.randn(rows, heads, width, size, dtype=dtype)
    own, common = (
        torch.randn(2, rows, groups, columns, size, dtype=dtype),
        torch.randn(2, 1, groups, before, size, dtype=dtype),
    )
    seen = torch.ones(rows, columns, dtype=torch.bool)
    seen[1, :2] = seen[2, :3] = False  # padding; of row 2 the first new column, too, is dead
    seen[2, 3] = False
    bias = causal_bias(seen, width)
    module = torch.nn.Module()
    module.layer_idx = 0
    found, _ = attend_apart(module, query, *own, bias, shared=[tuple(common)], scaling=0.3)
    keys, values = torch.cat([common.expand(2, rows, -1, -1, -1), own], dim=3).repeat_interleave(
        heads // groups, dim=2
    )
    scores = query.float() @ keys.float().mT * 0.3 + torch.nn.functional.pad(bias, (before, 0))
    expected = (scores.softmax(-1) @ values.float()).transpose(1, 2)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=apart, atol=apart / 10)
    assert bias[0, 0].eq(0).tolist() == [[c <= 3 + q for c in range(columns)] for q in range(width)]


@pytest.mark.parametrize("name", ["default", None])
def test_packed_layers_give_their_own_outputs_and_are_put_back(
    four_bit: Base, name: str | None
) -> None:
    layers = {n: m for n, m in four_bit.body.named_modules() if n.endswith("_proj")}
    assert len(layers) == 21
    with torch.inference_mode(), role(four_bit, name):
        inputs = {n: torch.randn(5, m.base_layer.in_features) for n, m in layers.items()}
        expected = {n: m(inputs[n]) for n, m in layers.items()}
        with packed(four_bit):
            assert all("forward" in vars(m) for m in layers.values())
            for n, m in layers.items():
                torch.testing.assert_close(m(inputs[n]), expected[n], rtol=1e-4, atol=1e-4)
        for n, m in layers.items():
            assert torch.equal(m(inputs[n]), expected[n])
    assert not any("forward" in vars(m) for m in four_bit.model.modules())


def test_packed_layers_are_put_back_after_an_error_and_large_models_are_left_alone(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), packed(base):
        assert "forward" in vars(base.head)
        raise KeyboardInterrupt
    assert not any("forward" in vars(m) for m in base.model.modules())
    monkeypatch.setattr("cai_lite.engine.packed._ROOM", 1000)
    with packed(base):
        assert not any("forward" in vars(m) for m in base.model.modules())


def test_a_checkpointed_model_in_training_is_read_as_at_rest(base: Base) -> None:
    wanted = generate(base, TEXTS, GREEDY, SEEDS, "Read this first.\n")
    (_, states), *_ = last_states(base, TEXTS, [0] * len(TEXTS))
    base.model.gradient_checkpointing_enable()  # as on a GPU: in training there is no cache
    base.model.train()
    try:
        assert generate(base, TEXTS, GREEDY, SEEDS, "Read this first.\n") == wanted
        (_, found), *_ = last_states(base, TEXTS, [0] * len(TEXTS))
        assert torch.equal(found, states) and base.model.training
    finally:
        base.model.gradient_checkpointing_disable()
        base.model.eval()


def test_the_models_attention_is_put_back(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    before = base.body.config._attn_implementation
    generate(base, TEXTS, GREEDY, SEEDS, "Read this first.\n")
    assert base.body.config._attn_implementation == before == "sdpa"


def test_a_short_window_is_left_to_the_models_own_attention(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(base, TEXTS, GREEDY, SEEDS, "Read this first.\n")
    monkeypatch.setattr(base.body.config, "sliding_window", 8, raising=False)
    monkeypatch.setattr(sampling_module, "attending_apart", None)  # not to be called
    assert generate(base, TEXTS, GREEDY, SEEDS, "Read this first.\n") == expected


def test_the_bar_says_how_many_tokens_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(show=True)
    progress.tokens(5)  # no bar: nothing to count onto
    with progress.bar("rows of something", 3) as advance:
        for _ in range(4):
            progress.tokens(500)
        (task,) = progress._shown[0].tasks
        assert task.fields["tokens"] == 2000
        advance(3)
    assert "tok/s" in capsys.readouterr().err and not progress._shown
    Progress().tokens(5)


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


@pytest.mark.parametrize("tokens", [700, 768])
def test_a_draw_falls_where_the_running_sum_passes_it(tokens: int) -> None:
    torch.manual_seed(0)
    chances = (torch.randn(200, tokens) * 3).softmax(-1)
    chances[:, ::3] = 0
    draws = torch.rand(200)
    draws[:2] = torch.tensor([0.0, 1 - 2**-24])
    found = sampling_module._inverted(chances, draws)
    sums = chances.double().cumsum(-1)
    assert found.tolist() == [
        next(t for t in range(tokens) if row[t] > draw * row[-1])
        for row, draw in zip(sums, draws.double(), strict=True)
    ]


def test_rows_that_end_leave_the_batch_and_disturb_no_other(
    base: Base, widths: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [ids_by_transformers(base, text, 10) for text in TEXTS]
    early = {i: ids[i][i] for i in range(4)}  # row i shall end with its own i-th token
    stops = sampling_module._stop_tokens(base, one_line=False)
    stops[list(early.values())] = True
    monkeypatch.setattr(sampling_module, "_stop_tokens", lambda *_: stops)
    widths.clear()
    found = generate(base, TEXTS, GREEDY, SEEDS)
    rows = [count for count, width in widths if width == 1]
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0] == len(TEXTS)
    for i, text in enumerate(found):
        first = next((k for k, token in enumerate(ids[i]) if stops[token]), None)
        kept = ids[i] if first is None else ids[i][: first + 1]
        assert text == base.tokenizer.decode(kept)


def test_a_row_that_ends_at_once_is_empty(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(base, TEXTS, GREEDY, SEEDS)
    head, first = base.head.forward, [True]
    lengths = [len(base.token_ids(text)) for text in TEXTS]
    second = sorted(lengths).index(lengths[1])  # the place among rows sorted by length
    assert lengths.count(lengths[1]) == 1

    def ends_the_second_row(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        if first.pop() if first else False:
            logits[second, base.tokenizer.eos_token_id] = 1e4
        return logits

    monkeypatch.setattr(base.head, "forward", ends_the_second_row)
    found = generate(base, TEXTS, GREEDY, SEEDS)
    assert found == [expected[0], "", *expected[2:]]
    first.append(True)
    second = 1
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
