"""Principles under the lens: who agrees, who pulls apart, who decides nothing."""

import subprocess
import sys

import numpy as np
import pytest

from cai_lite.errors import InputError
from cai_lite.lens import ENOUGH, agreement, conflicts, ensemble, idle, spread, twins

NAMES = ["kind", "lawful", "contrary", "mute"]
P = np.array(
    [
        [0.9, 0.8, 0.3, 0.5],  # prefers A, A, B, and has no side in the last pair
        [0.7, 0.4, 0.1, 0.6],
        [0.2, 0.1, 0.6, 0.5],
        [0.5, 0.5, 0.5, 0.5],
    ]
)


def test_agreement_counts_only_pairs_both_are_decided_on() -> None:
    nan = np.nan
    expected = [
        [1, 2 / 3, 0, nan],
        [2 / 3, 1, 1 / 3, nan],
        [0, 1 / 3, 1, nan],
        [nan, nan, nan, 1],
    ]
    assert agreement(P) == pytest.approx(np.array(expected), nan_ok=True)


def test_conflict_is_how_evenly_decided_principles_split() -> None:
    # A, B of the decided: 2 to 1, 1 to 2, 1 to 2, and "lawful" alone
    assert conflicts(P) == pytest.approx([8 / 9, 8 / 9, 8 / 9, 0])
    assert conflicts(np.array([[0.9, 0.5], [0.4, 0.5]])) == pytest.approx([1, 0])
    assert conflicts(np.array([[0.51], [0.9], [0.9], [0.49]])) == pytest.approx([3 / 4])


def test_spread_and_ensemble_are_over_principles() -> None:
    p = np.array([[0.9, 0.6, 1.0], [0.1, 0.6, 0.0], [0.5, 0.6, 0.5]])
    assert ensemble(p) == pytest.approx([0.5, 0.6, 0.5])
    assert spread(p) == pytest.approx([0.8 / 6**0.5, 0, 1 / 6**0.5])
    assert spread(np.array([[1.0], [0.0]])) == pytest.approx([0.5])  # the most there is


def test_idle_principles_are_named_with_the_reason() -> None:
    p = np.array([[0.49, 0.52, 0.5], [0.9, 0.6, 0.7], [0.1, 0.2, 0.4], [0.9, 0.2, 0.7]])
    found = idle(["faint", "first", "second", "good"], p)
    assert list(found) == ["faint", "first", "second"]
    assert "0.010 from one half" in found["faint"] and "less than 0.02" in found["faint"]
    assert "A in all 3 pairs" in found["first"] and "B in all 3 pairs" in found["second"]
    assert "faint" not in idle(["faint", "first", "second", "good"], p, least=0.005)


def test_a_side_taken_in_some_pairs_only_is_a_decision() -> None:
    assert idle(["mostly"], np.array([[0.9, 0.9, 0.5]])) == {}
    assert idle(["once"], np.array([[0.9]])) == {}  # one pair has one side only


def test_twins_agree_often_enough_in_pairs_enough() -> None:
    one = np.tile([0.9, 0.2], 10)
    almost, half = one.copy(), one.copy()
    almost[0], half[:10] = 0.1, 1 - half[:10]
    names, p = ["one", "half", "almost", "copy"], np.array([one, half, almost, one])
    assert twins(names, p) == [
        ("one", "copy", 1.0),
        ("one", "almost", 0.95),
        ("almost", "copy", 0.95),
    ]
    assert twins(names, p, most=0.96) == [("one", "copy", 1.0)]
    assert ("one", "half", 0.5) in twins(names, p, most=0.5)
    few = np.tile([0.9, 0.2], ENOUGH // 2)
    assert twins(["a", "b"], np.array([few, few])) == [("a", "b", 1.0)]
    undecided = few.copy()
    undecided[0] = 0.5  # one pair too few is shared
    assert twins(["a", "b"], np.array([few, undecided])) == []


def _random(seed: int) -> tuple[np.ndarray, np.random.Generator]:
    generator = np.random.default_rng(seed)
    return generator.choice([0.05, 0.3, 0.5, 0.8, 1.0], size=(6, 30)), generator


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_pairs_changes_nothing_but_order(seed: int) -> None:
    p, generator = _random(seed)
    order = generator.permutation(p.shape[1])
    names = list("abcdef")
    assert agreement(p[:, order]) == pytest.approx(agreement(p))
    for by_pair in (conflicts, spread, ensemble):
        assert by_pair(p[:, order]) == pytest.approx(by_pair(p)[order])
    assert idle(names, p[:, order], least=0.301) == idle(names, p, least=0.301)
    assert twins(names, p[:, order], most=0.4) == twins(names, p, most=0.4)


@pytest.mark.parametrize("seed", range(5))
def test_a_and_b_may_change_places(seed: int) -> None:
    p, generator = _random(seed)
    some = generator.random(p.shape[1]) < 0.5
    for flipped in (1 - p, np.where(some, 1 - p, p)):  # every pair, or some of them
        assert agreement(flipped) == pytest.approx(agreement(p))
        assert conflicts(flipped) == pytest.approx(conflicts(p))
        assert spread(flipped) == pytest.approx(spread(p))
    assert ensemble(1 - p) == pytest.approx(1 - ensemble(p))


@pytest.mark.parametrize("measure", [agreement, conflicts, spread, ensemble])
def test_what_is_no_p_is_refused(measure) -> None:
    with pytest.raises(InputError, match=r"shape \(3,\); expected \(principles, pairs\)"):
        measure(np.array([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match=r"shape \(2, 0\)"):
        measure(np.empty((2, 0)))
    with pytest.raises(InputError, match=r"p\[1, 0\] is 1.5; expected"):
        measure(np.array([[0.1], [1.5]]))
    with pytest.raises(InputError, match=r"p\[0, 1\] is nan"):
        measure(np.array([[0.1, np.nan]]))


@pytest.mark.parametrize("search", [idle, twins])
def test_every_principle_needs_a_name_of_its_own(search) -> None:
    with pytest.raises(InputError, match="3 names, 3 different, for 4 principles"):
        search(NAMES[:3], P)
    with pytest.raises(InputError, match="4 names, 3 different, for 4 principles"):
        search([*NAMES[:3], "kind"], P)


def test_the_lens_needs_no_torch() -> None:
    code = "import sys, cai_lite.lens; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
