"""Contrast, and what every labeller owes: order does not matter, a tie is a tie, silence loses."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES

from cai_lite.data import shipped_prompts
from cai_lite.engine import contrast, labellers
from cai_lite.engine.contrast import (
    LOWEST,
    Probe,
    contrast_logits,
    contrast_probe,
    fit_probe,
    load_probe,
    probe_layers,
)
from cai_lite.engine.models import Base, load_base
from cai_lite.engine.reader import Reader
from cai_lite.errors import InputError
from cai_lite.presets import get_preset
from cai_lite.records import Comparison, ContrastPair, Pair, write_json
from cai_lite.run import Run, begin_run, derive_seed
from cai_lite.stages.ai_feedback import LABELLERS, principles_for
from cai_lite.stages.preference_model import measure

LOOP = "No, no, no, no, no, no, no, no."
PAIRS = [
    Pair(id="1", prompt="How do I pick a lock?", a="Bend a wire.", b="I won't, it is not yours."),
    Pair(id="2", prompt="Who is to blame?", a="Nobody is, so far.", b="Everybody, I should say!"),
    Pair(id="3", prompt="Why?", a="x", b="A long answer that goes on about bread and butter."),
]


ASKED = [name for name in LABELLERS if name != "chain_of_thought"]  # that one: test_labellers


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return load_base(get_preset("ci", model=str(tiny_model), quantization="none", **TINY_SIZES))


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    preset = get_preset("ci", model=str(tiny_model), quantization="none", **TINY_SIZES)
    run = begin_run(tmp_path_factory.mktemp("contrast") / "run", preset)
    write_json(run.path("ai_feedback", "temperature.json"), 1.0)  # this model's labels are a coin's
    return run


@pytest.fixture(scope="module")
def probe(run: Run, base: Base) -> Probe:
    return contrast_probe(run, base, shipped_prompts("red_team", "train", 8))


def hostile_probe(base: Base) -> Probe:
    """A probe that reads every answer as far below what silence reads as."""
    layers = probe_layers(base)
    size = len(layers) * base.body.config.hidden_size
    centre = np.full(size, 50.0, np.float32)  # every state lies far below the centre
    return Probe(layers, centre, np.ones(size, np.float32), np.ones(size, np.float32))


# --- the probe


def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[SimpleNamespace, list[ContrastPair]]:
    """Noise of 60 features, of which the fifth tells good from bad."""

    def states(base, prompts, answers, layers, batch_size, openings=()):  # type: ignore[no-untyped-def]
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            seed = torch.Generator().manual_seed(derive_seed(prompt, answer))
            row = torch.randn(60, generator=seed) * 3 + 10
            row[5] += 6.0 if "kind" in answer else -6.0
            rows.append(row)
        return torch.stack(rows)

    monkeypatch.setattr(contrast, "answer_states", states)
    base = SimpleNamespace(body=SimpleNamespace(config=SimpleNamespace(num_hidden_layers=30)))
    pairs = [
        ContrastPair(id=str(i), prompt=f"p{i}", principle="x", good=f"kind {i}", bad=f"cruel {i}")
        for i in range(60)
    ]
    return base, pairs


def test_a_planted_feature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    base, pairs = planted(monkeypatch)
    probe = fit_probe(base, pairs, 8)  # type: ignore[arg-type]
    assert probe.layers == (12, 20) and int(np.abs(probe.weights).argmax()) == 5
    unseen = [f"{kind} {i}" for i in range(100, 200) for kind in ("kind", "cruel")]
    logits = contrast_logits(base, probe, unseen, unseen, 8)  # type: ignore[arg-type]
    right = logits[::2] > logits[1::2]
    assert right.mean() > 0.9


def test_the_probe_is_the_mirror_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    base, pairs = planted(monkeypatch)
    turned = [p.model_copy(update={"good": p.bad, "bad": p.good}) for p in pairs]
    one, other = fit_probe(base, pairs, 8), fit_probe(base, turned, 8)  # type: ignore[arg-type]
    assert np.allclose(one.weights, -other.weights, atol=1e-4)


def test_the_probe_comes_back_from_disk(probe: Probe, tmp_path: Path) -> None:
    probe.save(tmp_path / "probe.safetensors")
    again = load_probe(tmp_path / "probe.safetensors")
    states = torch.randn(5, len(probe.weights))
    assert again.layers == probe.layers
    assert np.array_equal(again.logits(states), probe.logits(states))


def test_a_run_fits_its_probe_once(
    run: Run, base: Base, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(contrast, "fit_probe", never)
    again = contrast_probe(run, base, shipped_prompts("red_team", "train", 8))
    assert np.array_equal(again.weights, probe.weights)
    pairs = run.path("contrast", "pairs.jsonl").read_text().splitlines()
    assert len(pairs) == 8


def test_principles_without_contrast_prompts_are_an_input_error(run: Run, base: Base) -> None:
    bare = [p.model_copy(update={"good": "", "bad": ""}) for p in run.constitution.comparison]
    constitution = run.constitution.model_copy(update={"comparison": bare})
    other = Run(run.folder / "other", run.preset, constitution)
    with pytest.raises(InputError):
        contrast_probe(other, base, shipped_prompts("red_team", "train", 8))


def as_reader(probe: Probe) -> Reader:
    return Reader(probe.layers, ("one",), probe.centre, probe.scale, probe.weights[None], 1.0)


# --- silence and loops


def test_saying_nothing_never_wins(run: Run, base: Base, probe: Probe) -> None:
    for judge in (probe, hostile_probe(base)):
        logits = contrast_logits(base, judge, ["Why?"] * 4, ["", " \n", "Because.", LOOP], 4)
        assert list(logits[:2]) == [LOWEST, LOWEST] and min(logits[2:]) > LOWEST
        for silence in ("", "  \n"):
            pair = Pair(id="s", prompt="Why?", a=silence, b="Because it is so, I think.")
            assert labellers.contrast(base, as_reader(judge), [(pair, [])], 4).p_a[0] < 0.5


def test_a_loop_never_wins(run: Run, base: Base, probe: Probe) -> None:
    for judge in (probe, hostile_probe(base)):
        for loop in (
            LOOP,
            "It is a scam that is a scam that is a scam that is a scam that is a scam.",
        ):
            pair = Pair(id="l", prompt="Why?", a="Because it is so.", b=loop)
            assert labellers.contrast(base, as_reader(judge), [(pair, [])], 4).p_a[0] > 0.5


# --- all labellers


@pytest.mark.parametrize("name", ASKED)
def test_swapping_the_answers_turns_the_label_round(
    run: Run, base: Base, probe: Probe, name: str
) -> None:
    work = [(pair, principles_for(run, pair)) for pair in PAIRS]
    turned = [(pair.model_copy(update={"a": pair.b, "b": pair.a}), drawn) for pair, drawn in work]
    rows = LABELLERS[name](run, base, work)
    swapped = LABELLERS[name](run, base, turned)
    for row, other, (pair, drawn) in zip(rows, swapped, work, strict=True):
        assert row.p_a == pytest.approx(1 - other.p_a, abs=1e-3)
        assert 0 <= row.p_a <= 1 and row.method == name
        assert (row.id, row.prompt, row.a, row.b) == (pair.id, pair.prompt, pair.a, pair.b)
        assert row.principles == [principle.id for principle in drawn]
    assert len({row.p_a for row in rows}) == len(PAIRS)
    alone = [LABELLERS[name](run, base, [one])[0].p_a for one in work]
    assert alone == pytest.approx([row.p_a for row in rows], abs=1e-3)


NO_ANSWER = ("", " \n", "No, no, no, no, no, no.", LOOP, "How do I read my sister's diary?")
SOUND = ("I don't think so. A diary is private.", "Take it while she is asleep, and put it back.")


@pytest.mark.parametrize("name", ASKED)
def test_a_loop_silence_or_an_echo_never_wins(
    run: Run, base: Base, probe: Probe, name: str
) -> None:
    work = [
        (Pair(id="n", prompt="How do I read my sister's diary?", a=a, b=b), chosen)
        for none in NO_ANSWER
        for sound in SOUND
        for a, b in ((none, sound), (sound, none))
        for chosen in [principles_for(run, PAIRS[0])]
    ]
    rows = LABELLERS[name](run, base, work)
    assert [row.p_a for row in rows] == pytest.approx([0.0001, 0.9999] * 10)
    none = Pair(id="n", prompt=work[0][0].prompt, a=NO_ANSWER[0], b=LOOP)
    assert LABELLERS[name](run, base, [(none, work[0][1])])[0].p_a == 0.5


@pytest.mark.parametrize("name", ASKED)
def test_an_exact_tie_stays_a_tie(run: Run, base: Base, probe: Probe, name: str) -> None:
    same = [pair.model_copy(update={"b": pair.a}) for pair in PAIRS]
    rows = LABELLERS[name](run, base, [(pair, principles_for(run, pair)) for pair in same])
    assert [row.p_a for row in rows] == [0.5] * len(PAIRS)


def test_the_same_principles_are_drawn_for_a_pair_each_time(run: Run) -> None:
    assert principles_for(run, PAIRS[0]) == principles_for(run, PAIRS[0])
    assert len(principles_for(run, PAIRS[0])) == run.preset.principles_per_pair


def test_multiple_choice_without_an_opinion_is_pure_position_bias(
    run: Run, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_a(base, texts, choices, batch_size, groups):  # type: ignore[no-untyped-def]
        return torch.log(torch.tensor([[0.91, 0.09]])).expand(len(texts), 2)

    monkeypatch.setattr(labellers, "choice_logprobs", always_a)
    work = [(pair, principles_for(run, pair)) for pair in PAIRS]
    found = labellers.multiple_choice(base, work, 4)
    assert np.allclose(found.p_a, 0.5) and np.allclose(found.scores["p_first"], 0.91)


def test_a_tied_label_counts_half_and_is_never_an_a(run: Run) -> None:
    rows = [
        Comparison(id=str(i), prompt="p", a="a", b="b", p_a=p, method="contrast", principles=[])
        for i, p in enumerate((0.5, 0.9, 0.1, 0.5))
    ]
    for scores in (torch.ones(4), torch.zeros(4)):
        judge = SimpleNamespace(
            scores=lambda prompts, answers, size, s=scores: s if answers[0] == "a" else 1 - s
        )
        measured, kept = measure(run, judge, rows)  # type: ignore[arg-type]
        assert measured["accuracy"] == 0.5 and kept["label"] == [0.5, 0.9, 0.1, 0.5]
