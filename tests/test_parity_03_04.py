"""The essential functions of notebooks 03 and 04 are the package's; their checks know mistakes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cai_lite.engine import labellers
from cai_lite.engine.contrast import answer_states, fit_probe, probe_layers
from cai_lite.engine.models import load_base, role
from cai_lite.engine.reward import (
    add_scalar_adapter,
    load_preference_model,
    save_preference_model,
    soft_preference_loss,
)
from cai_lite.prompts import chat
from cai_lite.records import ContrastPair, Pair
from cai_lite.teaching import checks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAIR = Pair(id="1", prompt="How do I pick a lock?", a="Ask the owner.", b="Take a hairpin <b>.")


def essential(notebook: str) -> dict:
    """Names that the cells tagged `essential` define, run alone and in order."""
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if "essential" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


@pytest.fixture(scope="module")
def feedback():
    return essential("03_ai_feedback.ipynb")


@pytest.fixture(scope="module")
def preference():
    return essential("04_preference_model.ipynb")


def test_soft_label_is_multiple_choice(feedback, tiny_base):
    from cai_lite.constitution import load_constitution

    for principle in load_constitution("harmlessness").comparison[:3]:
        mine = feedback["soft_label"](tiny_base, PAIR, principle.principle)
        package = labellers.multiple_choice(tiny_base, [(PAIR, [principle])], 2)
        assert mine == pytest.approx(package.p_a[0], abs=1e-5)


def test_tie_stays_half(feedback, tiny_base):
    tie = Pair(id="1", prompt=PAIR.prompt, a=PAIR.a, b=PAIR.a)
    assert feedback["soft_label"](tiny_base, tie, "Choose the kinder one.") == 0.5


def test_contrast_reader_is_the_probe(feedback, tiny_base):
    pairs = [
        ContrastPair(id=str(i), prompt=f"Question {i}?", principle="x", good=good, bad=bad)
        for i, (good, bad) in enumerate(
            [("please do not", "sure, go on"), ("never steal", "steal it"), ("be kind", "be cruel")]
        )
    ]
    probe = fit_probe(tiny_base, pairs, 2)
    prompts = [pair.prompt for pair in pairs]
    good, bad = (
        answer_states(
            tiny_base, prompts, [getattr(p, side) for p in pairs], probe_layers(tiny_base), 2
        )
        for side in ("good", "bad")
    )
    read = feedback["contrast_reader"](good.numpy(), bad.numpy())
    np.testing.assert_allclose(read(good.numpy()), probe.logits(good), atol=1e-4)


def test_soft_loss_is_the_packages(preference):
    torch.manual_seed(0)
    a, b, p = torch.randn(3, 50) * 5
    p = p.sigmoid()
    torch.testing.assert_close(preference["soft_loss"](a, b, p), soft_preference_loss(a, b, p))


def test_soft_loss_of_huge_differences_is_finite(preference):
    far = torch.tensor([500.0, -500.0])
    assert preference["soft_loss"](far, -far, torch.tensor([0.5, 0.5])).isfinite()


def test_reward_is_the_packages(preference, tiny_preset, tmp_path):
    scalar = load_base(tiny_preset, scalar=True)
    add_scalar_adapter(scalar, tiny_preset)
    save_preference_model(scalar, tiny_preset, tmp_path)
    base = load_base(tiny_preset)
    pm = load_preference_model(base, tmp_path)
    answers = [PAIR.a, PAIR.b, ""]
    package = pm.scores([PAIR.prompt] * 3, answers, 2)
    with role(base, pm.adapter):
        mine = [
            preference["reward"](base, pm.head, base.render(chat(PAIR.prompt, a), reply=False))
            for a in answers
        ]
    np.testing.assert_allclose(mine, package, atol=1e-4)


def sigma(x):
    return 1 / (1 + math.exp(-x))


BOTH_ORDERS = {
    "✓": lambda ab, ba: 0.5 + (sigma(ab[0] - ab[1]) - sigma(ba[0] - ba[1])) / 2,
    "one order": lambda ab, ba: sigma(ab[0] - ab[1]),
    "the other answer": lambda ab, ba: (sigma(ab[0] - ab[1]) + sigma(ba[0] - ba[1])) / 2,
    "hard label": lambda ab, ba: 1.0,
    "normalise": lambda ab, ba: (math.exp(ab[0]) + 1 - math.exp(ba[0])) / 2,
    "log-odds": lambda ab, ba: (ab[0] - ab[1] - ba[0] + ba[1]) / 2,
    "not attempted": lambda ab, ba: None,
    "expected": lambda ab, ba: 0.123,
}
CLAMP = {
    "✓": lambda p: min(max(p, 0.4), 0.6),
    "squeezed": lambda p: 0.4 + 0.2 * p,
    "lower bound": lambda p: min(p, 0.6),
    "upper bound": lambda p: max(p, 0.4),
    "tie": lambda p: 0.6 if p > 0.5 else 0.4,
    "first bounds": lambda p: min(max(p, 0.2), 0.8),
    "not attempted": lambda p: None,
}
GRADIENT = {
    "✓": lambda a, b, p: sigma(a - b) - p,
    "sign": lambda a, b, p: p - sigma(a - b),
    "hard label": lambda a, b, p: sigma(a - b) - 1,
    "σ is missing": lambda a, b, p: a - b - p,
    "label is missing": lambda a, b, p: sigma(a - b),
    "r_B": lambda a, b, p: sigma(a) - p,
    "loss itself": lambda a, b, p: -p * math.log(sigma(a - b)) - (1 - p) * math.log(sigma(b - a)),
    "not attempted": lambda a, b, p: None,
}
SAMPLE_SIZE = {
    "✓": lambda w: math.ceil(1.96**2 / 4 / w**2),
    "square": lambda w: 1.96 / 2 / w,
    "1/4": lambda w: 1.96**2 / w**2,
    "1.96": lambda w: 0.25 / w**2,
    "half": lambda w: 1.96**2 / 4 / (2 * w) ** 2,
    "not attempted": lambda w: None,
}


def agreement(mine, theirs):
    return np.mean([x == y for x, y in zip(mine, theirs, strict=True)])


def kappa(mine, theirs):
    a, b = mine.count("A") / len(mine), theirs.count("A") / len(theirs)
    chance = a * b + (1 - a) * (1 - b)
    return (agreement(mine, theirs) - chance) / (1 - chance)


KAPPA = {
    "✓": kappa,
    "raw agreement": agreement,
    "one half": lambda m, t: 2 * agreement(m, t) - 1,
    "divide": lambda m, t: agreement(m, t) - 0.625,
    "alone": lambda m, t: 0.625,
    "not attempted": lambda m, t: None,
}


@pytest.mark.parametrize(
    "check, tries",
    [
        (checks.feedback_both_orders, BOTH_ORDERS),
        (checks.feedback_clamp, CLAMP),
        (checks.feedback_kappa, KAPPA),
        (checks.preference_gradient, GRADIENT),
        (checks.preference_sample_size, SAMPLE_SIZE),
    ],
)
def test_checks_name_the_mistake(check, tries):
    for said, function in tries.items():
        assert said in check(function), said
