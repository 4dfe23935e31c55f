"""Evaluation: what is measured on which prompts, and of which model."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, FakeReader

from cai_lite.engine import outcomes
from cai_lite.engine.models import Base, add_adapter, load_base, new_adapter, save_adapter
from cai_lite.engine.outcomes import OUTCOMES, load_classifier, save_classifier
from cai_lite.engine.scoring import perplexity
from cai_lite.measures import share_interval
from cai_lite.presets import get_preset
from cai_lite.prompts import chat
from cai_lite.records import Answer, Judgement, LabelledAnswer, Pair, Rows, write_json
from cai_lite.run import Run, begin_run
from cai_lite.stages import evaluation as stage


class Judge:
    """In the preference model's place: shorter answers are better."""

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        return torch.tensor([-float(len(answer)) for answer in answers])


def shorter(run: Run, base: Base, pairs: Sequence[Pair]) -> np.ndarray:
    """In the embedded judge's place: three in four for the shorter answer."""
    return 0.5 + 0.25 * np.sign([len(pair.b) - len(pair.a) for pair in pairs])


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose models are there, untrained but for a push that tells them apart."""
    preset = get_preset("ci", model=str(tiny_model), quantization="none", **TINY_SIZES)
    run = begin_run(tmp_path_factory.mktemp("evaluation") / "run", preset)
    for seed, name in enumerate(("sl_cai", "rl_cai"), 1):
        base = load_base(preset)
        new_adapter(base, preset)
        torch.manual_seed(seed)
        for key, weight in base.model.named_parameters():
            if "lora_B" in key:
                weight.data += 0.1 * torch.randn_like(weight)
        save_adapter(base, run.path(name, "adapter"))
    for name in ("sl_cai", "preference_model", "rl_cai"):
        write_json(run.path(name, "done.json"), {"seconds": 0.0, "peak_memory_mb": 1})
    return run


@pytest.fixture(scope="module")
def found(run: Run) -> tuple[dict[str, Any], list[Answer], FakeReader]:
    """(summary, answers, what the reader saw) of the stage, run once."""
    reader = FakeReader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "load_preference_model", lambda *_: Judge())
        patch.setattr(stage, "load_classifier", lambda *_: reader)
        patch.setattr(stage.judges, "embedded", shorter)
        summary = stage.evaluation(run)
    return summary, Rows(run.path("evaluation", "answers.jsonl"), Answer).read(), reader


def test_every_model_answers_every_prompt_once(run: Run, found: Any) -> None:
    _, answers, reader = found
    prompts = [prompt.id for _, prompt in stage.evaluation_prompts(run)]
    assert len(prompts) == 12 == len(set(prompts))
    for model in stage.MODELS:
        assert [row.prompt_id for row in answers if row.model == model] == prompts
    assert reader.seen == [(row.prompt, row.response) for row in answers]
    by_model = [[r.response for r in answers if r.model == model] for model in stage.MODELS]
    assert by_model[0] != by_model[1] != by_model[2] != by_model[0]
    assert all(row.reward == -len(row.response) for row in answers)
    for row in answers:
        assert (row.passed is None) == (row.pass_share is None) == (row.prompt_set != "helpful")


def test_helpfulness_averages_over_the_answers_to_a_prompt(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt for _, prompt in stage.evaluation_prompts(run)]
    checked = [prompt for prompt in prompts if prompt.check]
    seen: list[list[int]] = []

    def said(base: Any, texts: Any, sampling: Any, seeds: Any, **_: Any) -> list[str]:
        seen.append(seeds)
        return [p.reference if len(seen) == 2 else "no" for p in checked]

    monkeypatch.setattr(stage, "generate", said)
    several = dataclasses.replace(run, preset=run.preset.model_copy(update={"eval_samples": 4}))
    shares = stage.pass_shares(several, load_base(run.preset), prompts, ["no"] * len(prompts))
    assert shares == {prompt.id: 0.25 for prompt in checked}
    assert len({seed for seeds in seen for seed in seeds}) == 3 * len(checked)


def test_the_summary_has_every_measure_with_an_interval(found: Any) -> None:
    summary = found[0]
    shares = ("harmlessness", "helps", "explains", "evasive", "broken", "helpfulness",
              "over_refusal")  # fmt: skip
    assert list(summary["models"]) == list(stage.MODELS)
    for one in summary["models"].values():
        for name in shares:
            low, high = one[f"{name}_ci"]
            assert 0 <= low <= one[name] <= high <= 1
        assert one.keys() - {f"{name}_ci" for name in shares} == {*stage.MADE_OF, "opening", "n"}
        assert one["n"] == {"red_team": 4, "helpful": 4, "borderline": 4}
    assert summary["classifier"] == FakeReader.accuracy
    pairs = {"sl_cai - base", "rl_cai - sl_cai", "rl_cai - base"}
    assert summary["differences"].keys() == pairs
    for measures in summary["differences"].values():
        assert measures.keys() == {"harmlessness", "helpfulness", "over_refusal", "broken"}
        assert all(low <= mean <= high for mean, low, high in measures.values())


def test_without_a_judge_or_a_later_model_the_rest_is_measured(run: Run) -> None:
    answers = {
        model: [
            answer("red_team", 0, outcome, model=model, reward=None),
            answer("helpful", 0, "helps", model=model, pass_share=0.5),
            answer("borderline", 0, "helps", model=model),
        ]
        for model, outcome in (("base", "helps"), ("sl_cai", "declines"))
    }
    assert stage.summarise(run, answers["sl_cai"])["reward"] is None
    assert list(stage.differences(run, answers)) == ["sl_cai - base"]


def answer(prompt_set: str, number: int, outcome: str, **fields: Any) -> Answer:
    fields = {"model": "base", "response": "text", "reward": 0.0, "category": "any"} | fields
    prompt_id = f"{prompt_set}-{number}"
    return Answer(
        id=f"{fields['model']}/{prompt_id}", prompt_id=prompt_id, prompt_set=prompt_set,
        prompt="Q?", outcome=outcome, **fields,
    )  # fmt: skip


def test_broken_counts_neither_as_harmless_nor_as_help(run: Run) -> None:
    rows = [answer("red_team", i, outcome) for i, outcome in enumerate([*OUTCOMES, "broken"])]
    rows += [answer("borderline", i, o) for i, o in enumerate(["declines", "refuses", "redirects"])]
    rows += [answer("helpful", i, "broken", pass_share=i / 2) for i in range(3)]
    one = stage.summarise(run, rows)
    assert one["harmlessness"] == 0.5  # declines, redirects, refuses
    assert (one["broken"], one["helps"]) == (0.3333, 0.1667)
    assert (one["explains"], one["evasive"]) == (0.1667, 0.1667)
    assert (one["over_refusal"], one["helpfulness"]) == (0.6667, 0.5)
    assert one["harmlessness_ci"] == share_interval([1, 1, 1, 0, 0, 0])
    assert (one["opening"], one["boilerplate"]) == ("text", 1.0)


def test_any_two_models_are_judged_on_each_red_team_prompt(run: Run, found: Any) -> None:
    summary, answers, _ = found
    said = {(r.model, r.prompt_id): r.response for r in answers if r.prompt_set == "red_team"}
    rows = Rows(run.path("evaluation", "judgements.jsonl"), Judgement).read()
    assert len(rows) == 3 * 4 and {row.judge for row in rows} == {"embedded"}
    for row in rows:
        a, b = (len(said[model, row.prompt_id]) for model in (row.model_a, row.model_b))
        assert row.p_a == 0.5 + 0.25 * np.sign(b - a)
    for name, judge in (("harmlessness", "embedded"), ("helpfulness", "checks")):
        one = summary["elo"][name]
        assert (one["judge"], one["n"]) == (judge, 4)
        assert list(one["models"]) == list(stage.MODELS)
        assert one["models"]["sl_cai"] == [0, 0, 0]
        assert all(low <= points <= high for points, low, high in one["models"].values())


def test_checks_say_who_is_more_helpful(run: Run) -> None:
    answers = {
        model: [answer("helpful", i, "helps", model=model, pass_share=s) for i, s in enumerate(own)]
        for model, own in (("base", [1, 0.5, 0.25]), ("sl_cai", [0, 0.5, 0.75]))
    }
    rows = stage.checked(answers)
    assert [row.p_a for row in rows] == [1, 0.5, 0.25]
    assert [row.id for row in rows] == [f"base~sl_cai/helpful-{i}" for i in range(3)]


def test_differences_are_paired_over_prompts(run: Run) -> None:
    said = {"base": ["helps"] * 8, "sl_cai": ["declines"] * 6 + ["helps", "broken"]}
    said["rl_cai"] = said["sl_cai"]
    answers = {
        model: [
            *[answer("red_team", i, o, model=model) for i, o in enumerate(those)],
            answer("helpful", 0, "helps", model=model, pass_share=model == "base"),
            answer("borderline", 0, "helps", model=model),
        ]
        for model, those in said.items()
    }
    found = stage.differences(run, answers)
    assert found["sl_cai - base"]["harmlessness"][0] == 0.75
    assert found["sl_cai - base"]["broken"][0] == 0.125
    assert found["sl_cai - base"]["helpfulness"][0] == -1.0
    low, high = found["rl_cai - sl_cai"]["harmlessness"][1:]
    assert found["rl_cai - sl_cai"]["harmlessness"][0] == 0 and low < 0 < high


def test_the_perplexity_is_of_the_reference_answers_under_the_role(run: Run, found: Any) -> None:
    base = load_base(run.preset)
    add_adapter(base, run.path("sl_cai", "adapter"), "sl_cai")
    for model in ("base", "sl_cai"):
        measured = stage.reference_perplexity(run, base, model)
        assert measured == pytest.approx(found[0]["models"][model]["perplexity"], rel=1e-3)
    assert found[0]["models"]["base"]["perplexity"] != found[0]["models"]["sl_cai"]["perplexity"]


def test_perplexity_is_the_plain_one(tiny_base: Base) -> None:
    texts = [tiny_base.render(chat(text)) for text in ("Hi", "A longer question?", "Why?")]
    answers = ["Yes.", "Because of the rain in spring", "No"]
    total, count = 0.0, 0
    for text, said in zip(texts, answers, strict=True):
        head, tail = tiny_base.token_ids(text), tiny_base.token_ids(said)
        with torch.no_grad():
            logs = tiny_base.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        total -= float(logs[len(head) - 1 : -1][torch.arange(len(tail)), tail].sum())
        count += len(tail)
    for batch_size in (1, 2, 8):
        measured = perplexity(tiny_base, texts, answers, batch_size)
        assert measured == pytest.approx(math.exp(total / count), rel=1e-4)


def test_the_stage_measures_by_the_classifier_it_loads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier itself, fitted on the tiny model: saved, loaded, and what it reads counted."""
    monkeypatch.setattr(outcomes, "_LAYERS", (1, 2, 3))
    monkeypatch.setattr(outcomes, "shipped", lambda *_: tmp_path)
    base = load_base(run.preset)
    said = {
        "declines": "I won't, because it hurts.",
        "helps": "Sure, take a wire.",
        "broken": "wire the of rain",
        "redirects": "Locks are old.",
        "refuses": "No, I won't.",
    }
    rows = [
        LabelledAnswer(id=f"{o}{i}", model="base", prompt_id=str(i), prompt=f"How {i}?",
                       response=f"{said[o]} {i}", outcome=o, readings=[o])
        for o in OUTCOMES for i in range(4)
    ]  # fmt: skip
    states = outcomes.reading(base, [r.prompt for r in rows], [r.response for r in rows])
    fitted = outcomes.fit(base, np.asarray(states), rows)
    fitted.accuracy.update({"held_out": {"n": 5}})
    save_classifier(fitted, tmp_path)
    reader = load_classifier(base)
    assert reader.base is base and reader.accuracy == {"held_out": {"n": 5}}
    asked, answers = ["How 9?"] * 7, [f"{said[o]} 9" for o in OUTCOMES]
    answers += ["", "No, no, no, no, no, no"]
    assert reader.outcomes(asked, answers) == [*OUTCOMES, "broken", "broken"]
    add_adapter(base, run.path("sl_cai", "adapter"), "sl_cai")
    assert reader.outcomes(asked, answers) == [*OUTCOMES, "broken", "broken"]  # untouched
