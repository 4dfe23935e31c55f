"""Two constitutions on the same pairs: equal ones agree, and the rest is counted by hand."""

from typing import Any

import numpy as np
import pytest

from cai_lite.constitution import load_constitution
from cai_lite.errors import InputError
from cai_lite.records import Pair, Rows
from cai_lite.run import Run, begin_run
from cai_lite.stages import constitutions as stage


@pytest.fixture
def run(tiny_preset: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(stage.judges, "temperature", lambda run, base: 1.0)
    run = begin_run(tmp_path / "run", tiny_preset)
    rows = [
        Pair(
            id=f"p{i}",
            prompt=f"How do I open {i} locks?",
            a=f"Take a wire, {i}.",
            b=f"I won't {i}.",
        )
        for i in range(6)
    ]
    run.path("ai_feedback").mkdir()
    Rows(run.path("ai_feedback", "pairs.jsonl"), Pair).append(rows)
    return run


def test_a_constitution_agrees_with_itself(run: Run) -> None:
    one = load_constitution("sea-captain")
    other = one.model_copy(update={"name": "the same"})
    found = stage.compare_constitutions(run, one, other)
    assert (found["n"], found["agreement"]) == (6, 1.0)
    assert found["kappa"] in (None, 1.0)  # none where all sides are one
    assert found["constitutions"] == ["sea-captain", "the same"]
    assert found["coverage"]["sea-captain"].keys() == {p.id for p in one.comparison}
    assert all(one["p_a"][0] == one["p_a"][1] for one in found["parting"])


def test_what_is_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = load_constitution("one-principle"), load_constitution("sea-captain")
    wide = len(second.comparison)
    p = {
        first.name: np.array([[0.9, 0.9, 0.8, 0.2, 0.4, 0.55]]),
        second.name: np.array([[0.6, 0.1, 0.7, 0.3, 0.45, 0.52]] * wide),
    }
    monkeypatch.setattr(stage, "by_principle", lambda run, base, one, pairs: p[one.name])
    found = stage.compare_constitutions(run, first, second)
    assert found["agreement"] == pytest.approx(5 / 6, abs=1e-4)
    assert found["agreement_ci"][0] < 5 / 6 < found["agreement_ci"][1]
    assert found["kappa"] == pytest.approx((5 / 6 - 1 / 2) / (1 - 1 / 2), abs=0.01)
    assert found["parting"][0]["prompt"] == "How do I open 1 locks?"
    assert found["parting"][0]["p_a"] == [0.9, 0.1] and len(found["parting"]) == 5
    assert found["coverage"][first.name] == {first.comparison[0].id: round(4 / 6, 4)}
    assert len(found["torn"][second.name][0]["p_a"]) == wide


def test_principles_are_asked_one_by_one(run: Run) -> None:
    one = load_constitution("sea-captain")
    base = stage.load_base(run.preset)
    pairs = Rows(run.path("ai_feedback", "pairs.jsonl"), Pair).read()
    p = stage.by_principle(run, base, one, pairs)
    assert p.shape == (len(one.comparison), 6) and ((p > 0) & (p < 1)).all()
    alone = one.model_copy(update={"comparison": one.comparison[1:2]})
    np.testing.assert_allclose(stage.by_principle(run, base, alone, pairs)[0], p[1], atol=1e-4)


def test_a_run_without_pairs_says_what_to_run(run: Run) -> None:
    run.path("ai_feedback", "pairs.jsonl").unlink()
    one = load_constitution("one-principle")
    with pytest.raises(InputError, match="no pairs of answers; run ai-feedback"):
        stage.compare_constitutions(run, one, one)


# --- telling two models apart


def test_telling_apart_is_counted_by_hand() -> None:
    leads = np.array([[3.0, 3.0], [2.0, -2.0], [-1.0, -1.0], [0.0, 0.0]])
    found = stage.told_apart(leads, ["hail", "wind"])
    # right; a tie, for one principle speaks for either; wrong; a tie, for neither speaks
    assert (found["n"], found["right"]) == (4, 0.5)
    assert found["ci"][0] < 0.5 < found["ci"][1]
    assert found["principles"]["hail"]["right"] == (1 + 1 + 0 + 0.5) / 4
    assert found["principles"]["wind"]["right"] == (1 + 0 + 0 + 0.5) / 4


CAPTAIN = load_constitution("sea-captain")
PROMPTS = [f"How do I open {i}?" for i in range(5)]
PLAIN = [f"Take a wire, {i}." for i in range(4)] + ["It is so."]
HAILS = [f"Ahoy {i}, I won't, for the tide is high." for i in range(4)] + ["It is so."]


@pytest.fixture
def leads_of(run: Run, tiny_base: Any) -> dict[str, Any]:
    """Both ways to tell models apart, of the captain's constitution on the tiny model."""
    captains = Run(run.folder, run.preset, CAPTAIN)
    reader = stage.own_reader(captains, tiny_base)
    assert reader.principles == tuple(p.id for p in CAPTAIN.comparison)
    return {
        "read": lambda *texts: stage.read_leads(tiny_base, reader, PROMPTS, *texts, 3),
        "asked": lambda *texts: stage.asked_leads(tiny_base, CAPTAIN, PROMPTS, *texts, 3),
    }


@pytest.mark.parametrize("way", ["read", "asked"])
def test_order_means_nothing_and_equal_answers_are_a_coin(leads_of: Any, way: str) -> None:
    there, back = leads_of[way](PLAIN, HAILS), leads_of[way](HAILS, PLAIN)
    assert there.shape == (5, len(CAPTAIN.comparison))
    np.testing.assert_allclose(there, -back, atol=1e-3)
    assert (there[:4] != 0).any() and (there[4] == 0).all()
    same = leads_of[way](HAILS, HAILS)
    assert (same == 0).all() and stage.told_apart(same, list("abcde"))["right"] == 0.5


@pytest.mark.parametrize("way", ["read", "asked"])
def test_every_prompt_needs_both_answers(leads_of: Any, way: str) -> None:
    with pytest.raises(InputError, match="5 prompts, 4 and 5 answers; expected one answer"):
        leads_of[way](PLAIN[:4], HAILS)


def test_a_reader_of_known_directions_tells_who_follows(tiny_base: Any) -> None:
    """A reader that points along the captain's answers finds them all; turned round, none."""
    states = [
        stage.answer_states(tiny_base, PROMPTS[:4], texts[:4], (1,), 4).numpy().mean(0)
        for texts in (PLAIN, HAILS)
    ]
    way = (states[1] - states[0])[None]
    for sign, share in ((1, 1.0), (-1, 0.0)):
        reader = stage.Reader((1,), ("all",), 0 * way[0], 0 * way[0] + 1, sign * way, 1.0)
        leads = stage.read_leads(tiny_base, reader, PROMPTS[:4], PLAIN[:4], HAILS[:4], 4)
        assert stage.told_apart(leads, ["all"])["right"] == share
