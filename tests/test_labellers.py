"""Labellers: thoughts are parsed strictly, readers calibrated, weights do what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cai_lite.constitution import Principle, load_constitution
from cai_lite.engine import labellers
from cai_lite.engine.conversations import harmful_option, messages
from cai_lite.engine.labellers import Labels
from cai_lite.engine.models import Base
from cai_lite.engine.reader import (
    OWN_TEXT,
    Reader,
    fit_reader,
    fit_temperature,
    load_reader,
    revision_pairs,
    talk_pairs,
    worked_pairs,
)
from cai_lite.engine.sampling import Sampling
from cai_lite.presets import Preset
from cai_lite.prompts import EXAMPLES, comparison_prefix, split_verdict
from cai_lite.records import ContrastPair, Pair, Revision
from cai_lite.run import Run, begin_run
from cai_lite.stages import ai_feedback as stage
from cai_lite.stages.ai_feedback import by_chain_of_thought, label_all
from cai_lite.texts import alike, says_nothing_new

PRINCIPLE = Principle(id="kind", principle="Choose the kinder response.")
PAIR = Pair(id="1", prompt="Why?", a="Because I say so.", b="I would rather tell you gently.")
GOOD = " (B) is kinder, since it is gentle. So the answer is: (B)"


# --- verdicts


@pytest.mark.parametrize(
    ("text", "best"),
    [
        (GOOD, "B"),
        (" A is kind.\nSo the answer is: (A).", "A"),
        (GOOD + "\n\nConsider the following conversation. So the answer is: (A)", "B"),
    ],
)
def test_one_plain_verdict_is_read(text: str, best: str) -> None:
    found = split_verdict(text)
    assert found and found[1] == best and "answer is" not in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "", " \n", "Both are kind.", "So the answer is: (A)", " ... So the answer is: (B)",
        "A is kind. So the answer is: (C)", "A is kind. So the answer is: (A) and (B)",
        "A. So the answer is: (A) So the answer is: (B)", "A is kind. The answer is: (A)",
        "A is kind. So the answer is: (A", "A is kind.\n\nSo the answer is: (A)",
        "A is kind. so the answer is: (a)", GOOD + " or perhaps not",
    ],
)  # fmt: skip
def test_any_other_text_is_no_verdict(text: str) -> None:
    assert split_verdict(text) is None


def test_worked_comparisons_are_read_as_their_own_verdicts() -> None:
    unlike = [e for e in EXAMPLES if not e.fine]
    shown = comparison_prefix(thoughts=True).split("Let's think step by step:")[1:]
    ends = [split_verdict(text) for text in shown]
    assert [end[1] if end else None for end in ends] == ["A", "B", "A", "B"][: len(unlike)]


# --- chain of thought


def argue(base: Base, said: list[str], p_first: list[float], monkeypatch, **more):  # type: ignore[no-untyped-def]
    """Labels of PAIR when the model says these texts and then these P("A")."""
    read = iter(p_first)

    def choices(base, texts, names, size, groups):  # type: ignore[no-untyped-def]
        return torch.tensor([[np.log(p), np.log(1 - p)] for p in (next(read) for _ in texts)])

    monkeypatch.setattr(labellers, "generate", lambda *_, **__: said)
    monkeypatch.setattr(labellers, "choice_logprobs", choices)
    seeds = [list(range(len(said)))]
    return labellers.chain_of_thought(
        base, [(PAIR, [PRINCIPLE])], 4, seeds, Sampling(16, 0.6), **more
    )


def test_samples_are_averaged_in_both_orders_and_clamped(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = argue(tiny_base, [GOOD, GOOD], [0.1, 0.7], monkeypatch, clamp=(0, 1))
    assert free.p_a == pytest.approx([(0.1 + 0.3) / 2])
    assert free.scores["p_a"][0] == pytest.approx([0.1, 0.3]) and free.thoughts == [[GOOD, GOOD]]
    clamped = argue(tiny_base, [GOOD, GOOD], [0.1, 0.7], monkeypatch)
    assert clamped.p_a == pytest.approx([0.40])
    assert argue(tiny_base, [GOOD], [0.99], monkeypatch).p_a == pytest.approx([0.60])


def test_a_sample_without_a_verdict_counts_for_nothing(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = argue(tiny_base, ["", GOOD], [0.55], monkeypatch)
    assert found.p_a == pytest.approx([0.45]) and np.isnan(found.scores["p_a"][0, 0])


def test_no_verdict_is_no_label_and_is_counted(
    tiny_base: Base, tiny_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.isnan(argue(tiny_base, ["", "Both (A) and (B)."], [], monkeypatch).p_a).all()
    half = torch.full((1, 2), 0.5).log()
    monkeypatch.setattr(
        labellers, "choice_logprobs", lambda base, texts, *_: half.expand(len(texts), 2)
    )
    preset = tiny_preset.model_copy(update={"labeller": "chain_of_thought"})
    run = begin_run(tmp_path / "run", preset)
    monkeypatch.setattr(labellers, "generate", lambda base, texts, *_, **__: [GOOD, ""] * (
        len(texts) // 2) if "Why?" in texts[0] else [""] * len(texts))  # fmt: skip
    pairs = [PAIR, PAIR.model_copy(update={"id": "2", "prompt": "Who?"})]
    run = Run(run.folder, preset.model_copy(update={"batch_size": 1}), run.constitution)
    rows = label_all(run, tiny_base, pairs)
    assert [row.id for row in rows] == ["1"] and rows[0].thoughts == [GOOD, ""]
    assert rows[0].scores["p_a"][1] is None and 0.4 <= rows[0].p_a <= 0.6
    assert label_all(run, tiny_base, pairs) == rows  # and again from disk


def test_a_real_models_thoughts_are_kept_or_dropped_whole(
    tiny_base: Base, tiny_preset: Preset, tmp_path: Path
) -> None:
    run = begin_run(tmp_path / "run", tiny_preset.model_copy(update={"thought_tokens": 16}))
    assert by_chain_of_thought(run, tiny_base, [(PAIR, [PRINCIPLE])]) == []  # it says nothing sound


# --- pointwise, mixed


def test_few_shots_stand_before_the_question(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def keep(base, texts, *_):  # type: ignore[no-untyped-def]
        asked.extend(texts)
        return torch.zeros(len(texts), 2)

    monkeypatch.setattr(labellers, "choice_logprobs", keep)
    labellers.pointwise(tiny_base, [(PAIR, [PRINCIPLE])], 2, few_shots=True)
    labellers.multiple_choice(tiny_base, [(PAIR, [PRINCIPLE])], 2, few_shots=True)
    assert len(asked) == 4
    for text in asked:
        assert all(e.question in text for e in EXAMPLES if not e.fine)
        assert text.rindex(PAIR.prompt) > text.rindex(EXAMPLES[-1].question)


def test_mixed_weighs_log_odds() -> None:
    one, other = Labels(np.array([0.9, 0.5]), {}), Labels(np.array([0.2, 0.5]), {})
    assert labellers.mixed(one, other, 1.0).p_a == pytest.approx([0.9, 0.5])
    assert labellers.mixed(one, other, 0.0).p_a == pytest.approx([0.2, 0.5])
    odds = 0.5 * np.log(9) + 0.5 * np.log(0.25)
    assert labellers.mixed(one, other, 0.5).p_a[0] == pytest.approx(1 / (1 + np.exp(-odds)))


def test_a_temperature_makes_margins_probabilities() -> None:
    draws = np.random.default_rng(0)
    true = draws.normal(0, 2, 4000)
    better = np.where(draws.random(4000) < 1 / (1 + np.exp(-true)), 1, -1)
    assert fit_temperature(3 * true * better) == pytest.approx(3, rel=0.15)
    assert fit_temperature(-np.abs(true)) == pytest.approx(1e6)  # never right: every label is 0.5


# --- the contrast reader


def pairs_of(base: Base) -> list[ContrastPair]:
    return [
        ContrastPair(
            id=str(i), prompt=f"Question {i % 6}?", principle="ab"[i % 2],
            good=f"I would not, it hurts {i}.", bad=f"Sure, go on and do it {i}!",
        )
        for i in range(12)
    ]  # fmt: skip


def test_a_reader_tells_its_pairs_apart_and_is_read_back(tiny_base: Base, tmp_path: Path) -> None:
    reader = fit_reader(tiny_base, pairs_of(tiny_base), ["a", "b"], OWN_TEXT, 4)
    assert reader.weights.shape[0] == 2 and not np.allclose(*reader.weights)
    work = [(Pair(id=p.id, prompt=p.prompt, a=p.good, b=p.bad), []) for p in pairs_of(tiny_base)]
    assert (labellers.contrast(tiny_base, reader, work, 4).p_a > 0.5).all()
    reader.save(tmp_path / "new" / "reader.safetensors")
    again = load_reader(tmp_path / "new" / "reader.safetensors")
    assert again.principles == ("a", "b") and again.temperature == reader.temperature
    assert np.array_equal(again.weights, reader.weights) and again.layers == reader.layers


def test_a_pair_is_read_by_the_probes_of_its_principles() -> None:
    reader = Reader((1,), ("a", "b"), np.zeros(2), np.ones(2), np.eye(2), 2.0)
    assert reader.logits(torch.tensor([[2.0, -4.0]])).tolist() == [[1.0, -2.0]]
    named = [Principle(id=name, principle="x") for name in ("b", "zz")]
    assert reader.places(named) == [1] and reader.places(named[1:]) == [0, 1]


def test_revisions_without_their_openings_stand_over_first_answers() -> None:
    rows = [
        Revision(id="p/0", prompt_id="p", prompt="Why?", round=0, response="Sure!"),
        Revision(id="p/1", prompt_id="p", prompt="Why?", round=1, response="Loop", dropped="loop"),
        Revision(id="p/2", prompt_id="p", prompt="Why?", round=2, response="Don't do it, please."),
        Revision(id="q/0", prompt_id="q", prompt="Who?", round=0, response="Him."),
    ]
    found = revision_pairs(rows, ["Don't"])
    (pair,) = found
    assert (pair.id, pair.bad, pair.good_opening) == ("revision p", "Sure!", "Don't")
    assert pair.good == " do it, please."


def test_worked_pairs_are_those_of_the_constitutions_principles() -> None:
    ours = worked_pairs(load_constitution("harmlessness"))
    assert len(ours) > 140 and len({pair.id for pair in ours}) == len(ours)
    captain = worked_pairs(load_constitution("sea-captain"))
    assert not any(pair.id.startswith("dl-") for pair in captain)


def test_talks_are_for_a_constitution_that_has_dialogues() -> None:
    found = talk_pairs(load_constitution("harmlessness"))
    assert sum(pair.id.startswith("tk-") for pair in found) > 200
    assert sum(pair.id.startswith("dl-") for pair in found) > 150
    assert not {"helpful", "honest"} & {pair.principle for pair in found}
    captain = load_constitution("sea-captain")
    assert talk_pairs(captain) == worked_pairs(captain)


# --- pairs


def test_answers_too_much_alike_are_drawn_again(
    tiny_base: Base, tiny_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[list[str]] = [["Yes.", "Yes.", "No.", "Never."], ["Yes."], ["Perhaps."]]
    warm: list[float] = []

    def generate(base, texts, sampling, seeds, **_):  # type: ignore[no-untyped-def]
        warm.append(sampling.temperature)
        return said.pop(0)

    monkeypatch.setattr(stage, "generate", generate)
    run = begin_run(tmp_path / "run", tiny_preset)
    prompts = run.prompts("red_team", "train", 2)
    pairs = stage._sample(run, tiny_base, prompts, [0, 1])
    assert [(p.a, p.b, p.redrawn) for p in pairs] == [("Yes.", "Perhaps.", 2), ("No.", "Never.", 0)]
    assert warm == [1.0] * 3


def test_temperatures_take_turns(
    tiny_base: Base, tiny_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stage,
        "generate",
        lambda base, texts, s, seeds, **_: [f"{s.temperature} {n}" for n in seeds],
    )
    preset = tiny_preset.model_copy(update={"feedback_temperatures": (0.5, 1.0)})
    run = begin_run(tmp_path / "run", preset)
    pairs = stage._sample(run, tiny_base, run.prompts("red_team", "train", 2), [0, 1])
    assert [(p.a[:3], p.b[:3]) for p in pairs] == [("0.5", "1.0"), ("1.0", "0.5")]


def test_alike_and_nothing_new() -> None:
    assert alike("It is wrong.", "it is wrong!") and not alike("It is wrong.", "It is right.")
    long = "one two three four five six seven eight nine ten"
    assert alike(long, long + " eleven") and not alike(long, "ten nine eight seven six five")
    assert not alike("", "Yes.")
    assert says_nothing_new("No, no, no, no.") and says_nothing_new("so it is a scam that is " * 6)
    twice = "I won't do that, because it hurts her. I won't do that, because it hurts her."
    assert not says_nothing_new(twice)


# --- single conversations


def test_turns_are_read_and_an_open_end_is_refused() -> None:
    turns = messages(
        "Human: Hi\n\nAssistant: Hello.\n\nOn two lines.\n\nHuman: Why?\n\nAssistant: So."
    )
    assert [t["role"] for t in turns] == ["user", "assistant"] * 2
    assert turns[1]["content"] == "Hello.\n\nOn two lines."
    with pytest.raises(ValueError, match="no assistant's turn at the end"):
        messages("Human: Hi\n\nAssistant: Hello.\n\nHuman: Why?")


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["harmful", "ethical"], 0),
        (["The assistant is ethical.", "The assistant is unethical."], 1),
        (["not harmful", "harmful"], 1),
        (["It is not a harmful reply", "It is a bad reply"], 1),
        (["good", "fine"], None),
        (["harmful", "dangerous"], None),
    ],
)
def test_the_option_that_says_harmful(options: list[str], place: int | None) -> None:
    assert harmful_option(options) == place
