"""Settings are read back as they were written, and compared prompt by prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cai_lite.errors import InputError
from cai_lite.teaching import readings
from cai_lite.teaching.figures import Texts
from cai_lite.teaching.readings import ablation, differences_table, texts_table

LINES = [
    {"figure": "7", "setting": way, "round": number, "prompt_id": f"p{i}", "score": score,
     "outcome": outcome, "dropped": dropped}
    for way, number, i, score, outcome, dropped in (
        ("critique", 0, 0, 0.2, "helps", ""),
        ("critique", 0, 1, 0.4, "broken", ""),
        ("critique", 1, 0, 0.6, "declines", ""),
        ("critique", 1, 1, 0.4, "broken", "loop"),
        ("direct", 1, 0, 0.6, "refuses", ""),
        ("direct", 1, 1, 0.8, "redirects", ""),
    )
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "ablations.jsonl"
    found.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return found


def test_a_setting_is_read_back(path: Path) -> None:
    found = ablation("7", "critique", 1, path)
    assert found == Texts([0.6, 0.4], [True, False], [False, True])  # broken is not harmless
    assert ablation("7", "direct", 1, path).harmless == [True, True]


def test_without_the_file_it_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchmarks/ablations.py"):
        ablation("6", "1", 1, tmp_path / "none.jsonl")


def test_the_tables_have_n_intervals_and_the_verdict(path: Path) -> None:
    first, critique = (ablation("7", "critique", number, path) for number in (0, 1))
    page = texts_table({"<i>": critique}).data
    assert "50% [9%, 91%], n = 2" in page and "0.500 ± 0.100" in page and "<i>" not in page
    page = differences_table({"round 1": (critique, first), "none": (first, first)}).data
    assert "+0.500 [+0.000, +1.000], zero is inside" in page and "+0.200" in page
    rising = Texts([0.9, 0.8, 0.9], [True] * 3), Texts([0.1, 0.2, 0.2], [False] * 3)
    assert "zero is outside" in differences_table({"up": rising}).data


def test_scores_and_outcomes_may_come_from_different_numbers_of_prompts() -> None:
    page = texts_table({"round 0": Texts([0.1, 0.2, 0.3], [True])}).data
    assert "n = 3" in page and "n = 1" in page and "—" in page


def test_openings_are_found_and_objections_counted() -> None:
    openings = ["It is wrong", "It is wrong to"]
    assert readings.opening_of("It is wrong to lie.", openings) == "It is wrong"
    assert readings.opening_of("Lie!", openings) == ""
    assert readings.own_words("It is wrong to lie.", openings) == "to lie."
    assert readings.objecting(["It is wrong to lie.", "Lie to them."]) == 0.5


def test_words_borrowed_from_a_reason_are_found() -> None:
    critique = "The response hurts the landlord, because the tax office reads his diary."
    text = "Keep off the landlord's diary and office."
    assert readings.borrowed(text, critique, "How do I find his office?") == {"diary"}


def test_judged_gives_both_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def logits(base: Any, probe: Any, *rest: Any) -> np.ndarray:
        read.append(rest)
        return np.array([0.0, 100.0])

    class Classifier:
        def outcomes(self, prompts: list[str], answers: list[str]) -> list[str]:
            return ["helps", "refuses"]

    monkeypatch.setattr(readings, "contrast_logits", logits)
    args: Any = None, None, Classifier()
    found = readings.judged(*args, ["p", "q"], ["a", "b"], ["x", "y"])
    assert found.scores == pytest.approx([0.5, 1.0]) and found.harmless == [False, True]
    assert read == [(["p", "q"], ["a", "b"], 32, ["x", "y"])]


def test_all_settings_of_a_figure_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ablations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in every_setting()))
    assert [found.scores for found in readings.by_principles(path).values()] == [[0.5]] * 6
    assert [len(rounds) for rounds in readings.by_way(path).values()] == [3, 3]


def every_setting() -> list[dict[str, Any]]:
    six = [("6", str(n), min(n, 1)) for n in (0, 1, 2, 4, 8, 16)]
    seven = [("7", way, number) for way in ("critique", "direct") for number in range(3)]
    told = {"prompt_id": "p", "score": 0.5, "outcome": "declines", "dropped": ""}
    return [{"figure": f, "setting": s, "round": r} | told for f, s, r in six + seven]
