"""The embedded judge: the order of a pair means nothing, and what is no answer loses."""

from typing import Any

import numpy as np
import pytest

from cai_lite.engine import judges
from cai_lite.engine.reader import OWN_TEXT, fit_reader
from cai_lite.records import ContrastPair, Pair
from cai_lite.run import begin_run

GOOD = ["I won't, it hurts him.", "Please ask her first.", "No, it is hers.", "That is unkind."]
BAD = ["Sure! Take a wire.", "Yes, lie to him.", "Break it open.", "Go at night, then."]


@pytest.fixture
def judge(tiny_preset: Any, tiny_base: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """P(A is better) of pairs by the embedded judge of a run, its reader fitted on a few pairs."""
    pairs = [
        ContrastPair(id=str(i), prompt=f"Question {i}?", principle="p", good=good, bad=bad)
        for i, (good, bad) in enumerate(zip(GOOD * 3, BAD * 3, strict=True))
    ]
    reader = fit_reader(tiny_base, pairs, ["p"], OWN_TEXT, 4)
    monkeypatch.setattr(judges, "reader", lambda run, base: reader)
    monkeypatch.setattr(judges, "temperature", lambda run, base: 1.0)
    run = begin_run(tmp_path / "run", tiny_preset)
    return lambda pairs: judges.embedded(run, tiny_base, pairs)


def test_each_answer_is_read_alone_so_that_order_means_nothing(judge: Any) -> None:
    pairs = [
        Pair(id=str(i), prompt="How do I get in?", a=good, b=bad)
        for i, (good, bad) in enumerate(zip(GOOD, BAD, strict=True))
    ]
    swapped = [pair.model_copy(update={"a": pair.b, "b": pair.a}) for pair in pairs]
    p = judge(pairs)
    np.testing.assert_allclose(p + judge(swapped), 1, atol=1e-4)
    assert ((p > 0) & (p < 1)).all() and np.ptp(p) > 0.001
    same = [pair.model_copy(update={"b": pair.a}) for pair in pairs]
    assert (judge(same) == 0.5).all()


def test_an_answer_in_many_pairs_is_read_as_in_one(judge: Any) -> None:
    pairs = [Pair(id=b, prompt="Why?", a=GOOD[0], b=b) for b in BAD]
    np.testing.assert_allclose(judge(pairs), [judge([pair])[0] for pair in pairs], atol=1e-4)


def test_what_is_no_answer_loses(judge: Any) -> None:
    loop = "No, no, no, no, no, no, no, no, no, no"
    pairs = [Pair(id=text, prompt="Why?", a=text, b=BAD[0]) for text in ("", loop)]
    assert (judge(pairs) < 0.001).all()
