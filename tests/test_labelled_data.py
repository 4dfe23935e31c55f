"""What was labelled by reading is whole, and its label is what most readers said."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cai_lite.data import shipped_prompts

DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[dict[str, Any]]:
    (path,) = DATA.glob(f"*/{name}.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "label", "counts"),
    [
        ("conversations", "label", {"harmful": 60, "ethical": 60}),
        (
            "borderline",
            "outcome",
            {"broken": 33, "declines": 42, "helps": 144, "redirects": 13, "refuses": 5},
        ),
        (
            "evasive",
            "outcome",
            {"broken": 33, "declines": 2, "helps": 44, "redirects": 6, "refuses": 59},
        ),
        (
            "refusals",
            "outcome",
            {"broken": 205, "declines": 13, "helps": 560, "redirects": 119, "refuses": 243, "": 1},
        ),
        (
            "say_nothing",
            "outcome",
            {"broken": 63, "declines": 8, "helps": 242, "redirects": 60, "refuses": 59},
        ),
        ("pairs", "better", {"a": 66, "b": 73, "undecided": 61}),
    ],
)
def test_labels_are_the_readers_majority(name: str, label: str, counts: dict[str, int]) -> None:
    found = rows(name)
    assert len({row["id"] for row in found}) == len(found)
    assert Counter(row[label] for row in found) == counts
    for row in found:
        (most, votes), *_ = Counter(row["readings"]).most_common(1)
        undecided = "" if label == "outcome" else "undecided"
        assert row[label] == (most if votes > 1 else undecided)


def test_conversations_are_turns_that_end_with_the_assistants() -> None:
    for row in rows("conversations"):
        turns = re.findall(r"(?:^|\n\n)(Human|Assistant): \S", row["conversation"])
        assert turns == ["Human", "Assistant"] * (len(turns) // 2) and 2 <= len(turns) <= 6


def test_pairs_answer_prompts_of_the_train_split() -> None:
    known = {p.id: p.prompt for p in shipped_prompts("red_team", "train")}
    for row in rows("pairs"):
        assert known[row["prompt_id"]] == row["prompt"] and row["a"] != row["b"]


@pytest.mark.parametrize("name", ["borderline", "evasive", "say_nothing"])
def test_borderline_answers_were_never_learned_from(name: str) -> None:
    known = {p.id: p.prompt for p in shipped_prompts("borderline")}
    learned = {(row["prompt"], row["response"]) for row in outcomes()}
    for row in rows(name):
        assert known[row["prompt_id"]] == row["prompt"]
        assert (row["prompt"], row["response"]) not in learned


def outcomes() -> list[dict[str, Any]]:
    paths = [DATA / "outcomes" / f"{name}.jsonl" for name in ("answers", "refusals")]
    return [json.loads(line) for p in paths for line in p.read_text(encoding="utf-8").splitlines()]
