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
