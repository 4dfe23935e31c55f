"""The functions that notebook 08 shows inline do what `cai-lite iterate` and the package do."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cai_lite import cli
from cai_lite.engine import judges
from cai_lite.stages import iterate
from cai_lite.teaching import checks
from cai_lite.texts import distinct_pairs, words

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "08_close_the_loop.ipynb"


def essential(**given: Any) -> dict[str, Any]:
    """What the notebook's cells tagged `essential` define."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"np": np, **given}
    for cell in (c for c in cells if "essential" in c["metadata"].get("tags", [])):
        assert len(cell["source"]) <= 25
        exec("".join(cell["source"]), names)
    return names


def test_agreement_is_the_packages():
    agreement = essential()["agreement"]
    rng = np.random.default_rng(0)
    for n in (4, 17, 60):
        p, first = rng.random(n), rng.random(n)
        p[0] = 0.5
        share, kappa = agreement(p, first)
        found = judges.agreement(p, first)
        assert share == pytest.approx(found["agreement"], abs=1e-4)
        assert kappa == pytest.approx(found["kappa"], abs=1e-4)


def test_the_loop_does_what_the_command_does(monkeypatch, tmp_path):
    """The same stages on the same rounds in the same order, measured after each."""
    done: list[tuple[str, int]] = []

    def stage(name: str) -> Any:
        return lambda own: done.append((name, own)) or {"seconds": 0.0, "peak_memory_mb": 1}

    class Opened:
        """In a run's place: nothing is finished, nothing is there."""

    monkeypatch.setattr(iterate, "begin_round", lambda run, number: number)
    monkeypatch.setattr(
        iterate, "measure_round", lambda run, number: done.append(("measure", number)) or number
    )
    for name in iterate.AGAIN:
        module = importlib.import_module(f"cai_lite.stages.{name}")
        monkeypatch.setattr(module, name, stage(name))
    monkeypatch.setattr(
        cli, "_one_stage",
        lambda own, name, place: getattr(
            importlib.import_module(f"cai_lite.stages.{name}"), name)(own),
    )  # fmt: skip
    for number in (1, 2, 3):
        cli._improve(Opened(), number, 3)
        iterate.measure_round(Opened(), number)
    by_command = list(done)
    done.clear()
    stages = [
        getattr(importlib.import_module(f"cai_lite.stages.{name}"), name) for name in iterate.AGAIN
    ]
    close_the_loop = essential(
        begin_round=iterate.begin_round,
        measure_round=iterate.measure_round,
        **dict(zip(iterate.AGAIN, stages, strict=True)),
    )["close_the_loop"]
    assert close_the_loop(Opened(), 3) == [1, 2, 3]
    assert done == by_command and len(done) == 3 + 2 * len(iterate.AGAIN)


def pooled(texts, pairs_of):
    pairs = [pair for text in texts for pair in pairs_of(text)]
    return len(set(pairs)) / len(pairs)


def neighbours(text):
    return list(zip(text, text[1:], strict=False))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda texts: None, "not attempted"),
        (lambda texts: pooled(texts, neighbours), "✓"),
        (lambda texts: np.mean([pooled([text], neighbours) for text in texts]), "a mean over"),
        (lambda texts: pooled([sum(texts, [])], neighbours), "the beginning of the next"),
        (lambda texts: pooled(texts, list), "single words"),
        (lambda texts: len({pair for text in texts for pair in neighbours(text)}), "divide"),
        (lambda texts: 1.0, "comes twice"),
        (lambda texts: 1 - pooled(texts, neighbours), "had come before"),
    ],
)
def test_check_of_distinct_pairs(answer, said):
    assert said in checks.loop_distinct(answer)


def test_the_checked_measure_is_the_packages():
    texts = ["No, no, no.", "I can't help. I can't say."]
    assert distinct_pairs(texts) == pytest.approx(5 / 7)
    assert distinct_pairs(texts) == pooled([words(text) for text in texts], neighbours)


def last_round(agreement, low, broken, *, first=0, off=0):
    """The right answer, or wrong ones: `first` None compares with the round before."""
    for i, (share, lost) in enumerate(zip(agreement, broken, strict=True)):
        yardstick = broken[max(0, i - 1) if first is None else first]
        if share < low or lost > yardstick + 0.05 + 1e-9:
            return i + off
    return len(agreement)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda a, low, b: None, "not attempted"),
        (last_round, "✓"),
        (lambda a, low, b: last_round(a, low, b, first=None), "compare with round 1"),
        (lambda a, low, b: last_round(a, low, b, off=1), "keep the one before"),
        (lambda a, low, b: last_round([1.0] * len(a), low, b), "built on it"),
        (lambda a, low, b: 1 if low in a else min(2, last_round(a, low, b)), "keep the last"),
        (lambda a, low, b: 7, "expected 2"),
    ],
)
def test_check_of_the_last_round(answer, said):
    assert said in checks.loop_last_round(answer)
