"""What notebook 07 shows inline is what the package computes, and its exercises know mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cai_lite import lens
from cai_lite.engine.contrast import answer_states
from cai_lite.engine.reader import Reader
from cai_lite.files import shipped
from cai_lite.stages import constitutions
from cai_lite.teaching import checks

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "07_change_the_constitution.ipynb"


def essential() -> dict[str, Any]:
    """What the notebook's cells tagged `essential` define."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"answer_states": answer_states}
    for cell in (c for c in cells if "essential" in c["metadata"].get("tags", [])):
        assert len(cell["source"]) <= 25
        exec("".join(cell["source"]), names)
    return names


def test_telling_apart_by_hand_is_the_packages(tiny_base: Any) -> None:
    """Same leads and share, answer by answer and in batches; equal answers lead by nothing."""
    weights = np.random.default_rng(2).normal(size=(5, 2 * 64))
    centre, scale = np.zeros(2 * 64), np.ones(2 * 64)
    reader = Reader((1, 2), tuple("abcde"), centre, scale, weights, 2.0)
    asked = [f"How do I open {i} locks?" for i in range(6)]
    others = [f"Take a wire, {i}." for i in range(6)]
    followers = [f"Ahoy {i}, the tide is high." for i in range(5)] + others[5:]
    leads = essential()["leads"](tiny_base, reader, asked, others, followers)
    theirs = constitutions.read_leads(tiny_base, reader, asked, others, followers, 4)
    np.testing.assert_allclose(leads, theirs.mean(1), atol=1e-3)
    assert leads[5] == theirs[5].mean() == 0 and max(map(abs, leads[:5])) > 0.01
    found = constitutions.told_apart(theirs, list("abcde"))
    assert essential()["share_right"](leads) == pytest.approx(found["right"], abs=1e-4)


def test_shares_by_hand() -> None:
    share_right = essential()["share_right"]
    assert share_right([0.3, -0.1, 0.0, 2.0]) == 2.5 / 4
    assert share_right([0.0, 0.0]) == 0.5


def covered(pick: Any) -> Any:
    return lambda p, least: pick(p, np.abs(p - 0.5) > least, least)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda p, least: None, "not attempted"),
        (covered(lambda p, fires, least: fires.mean(1)), "✓"),
        (covered(lambda p, fires, least: (p > 0.5 + least).mean(1)), "sure of B"),
        (covered(lambda p, fires, least: fires.sum(1)), "counts"),
        (covered(lambda p, fires, least: 1 - fires.mean(1)), "turned round"),
        (covered(lambda p, fires, least: (p != 0.5).mean(1)), "use `least`"),
        (covered(lambda p, fires, least: fires.mean(0)), "expected the shape (3,)"),
        (lambda p, least: "many", "expected numbers"),
    ],
)
def test_check_of_coverage(answer: Any, said: str) -> None:
    assert said in checks.constitution_coverage(answer)


def conflict(p: Any, decided: Any = lambda one: one != 0.5, factor: int = 4) -> float:
    sides = [one > 0.5 for one in p if decided(one)]
    share = sum(sides) / len(sides) if sides else 0.0
    return factor * share * (1 - share)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda p: None, "not attempted"),
        (conflict, "✓"),
        (lambda p: lens.conflicts(np.array([p]).T)[0], "✓"),
        (lambda p: conflict(p, factor=1), "the factor 4"),
        (lambda p: conflict(p, decided=lambda one: True), "leave it out"),
        (lambda p: sum(one > 0.5 for one in p) / max(1, sum(o != 0.5 for o in p)), "share for A"),
        (lambda p: 4 * np.mean(p) * (1 - np.mean(p)), "mean p"),
        (lambda p: float("nan") if p == [0.5, 0.5] else conflict(p), "nobody is decided"),
        (lambda p: 7.0, "got"),
    ],
)
def test_check_of_the_conflict(answer: Any, said: str) -> None:
    assert said in checks.constitution_conflict(answer)


CAPTAIN = shipped("constitutions", "sea-captain.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not attempted"),
        (CAPTAIN, "✓"),
        ("name: [", "not YAML"),
        (CAPTAIN.replace("principle:", "principal:"), "is missing"),
        (CAPTAIN[: CAPTAIN.index("  - id: sea-words\n    principle")], "two to compare by"),
        (
            CAPTAIN.replace('  - "Aye, my friend,"\n  - "Welcome aboard!"\n', ""),
            "revision_openings",
        ),
        (CAPTAIN.replace("Does the response greet", "Does it not greet"), "'not' in the question"),
        (CAPTAIN.replace("the words of a sailor?", "the words of a sailor"), "write one"),
        (CAPTAIN.replace("    bad_opening: The answer is\n", ""), "✓"),
        (
            CAPTAIN.replace("    bad: You are an office clerk.", "    bad:\n#"),
            "`good` and `bad`",
        ),
    ],
)
def test_check_of_a_constitution(text: str, said: str) -> None:
    assert said in checks.constitution_text(text)
