"""The functions that notebooks 05 and 06 show inline compute what TRL and the package compute."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cai_lite.elo import strengths
from cai_lite.measures import bootstrap_interval
from cai_lite.teaching import checks, widgets

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def essential(notebook: str) -> dict[str, Any]:
    """What the notebook's cells tagged `essential` define."""
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"torch": torch, "np": np}
    for cell in (c for c in cells if "essential" in c["metadata"].get("tags", [])):
        assert len(cell["source"]) <= 25
        exec("".join(cell["source"]), names)
    return names


@pytest.fixture
def trainer(tiny_preset, tiny_base, tmp_path):
    """The package's RLOO trainer on an adapter that has moved away from its reference."""
    from cai_lite.engine.models import new_adapter
    from cai_lite.run import begin_run
    from cai_lite.stages.rl_cai import make_trainer

    class Lengths:
        """In the preference model's place: longer answers are better."""

        def scores(self, prompts: list[str], answers: list[str]) -> torch.Tensor:
            return torch.tensor([len(answer) / 10 for answer in answers])

    preset = tiny_preset.model_copy(update={"rl_generations": 4, "rl_beta": 0.3})
    new_adapter(tiny_base, preset)
    made = make_trainer(begin_run(tmp_path / "run", preset), tiny_base, Lengths())
    torch.manual_seed(1)
    for name, weight in tiny_base.model.named_parameters():
        if ".default." in name:
            weight.data += 0.05 * torch.randn_like(weight)
    return made


def test_rloo_is_what_trl_computes(trainer):
    """Same advantages, KL included, and the same gradient at the first pass over a batch."""
    rloo = essential("05_rl_cai.ipynb")["rloo"]
    rows = [row for row in list(trainer.train_dataset)[:2] for _ in range(4)]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]

    def logps() -> torch.Tensor:
        return trainer._get_per_token_logps_and_entropies(trainer.model, tokens, mask, width)[0]

    trainer.model.set_adapter("ref")
    with torch.no_grad():
        reference = logps()
    trainer.model.set_adapter("default")
    rewards = torch.tensor(list(trainer._logs["rewards"]["pm_reward"]))
    own = logps()
    assert (own - reference).abs().max() > 1e-3  # or the KL term would not be tested
    advantages, loss = rloo(own, reference, batch["completion_mask"], rewards, 4, 0.3)
    torch.testing.assert_close(advantages, batch["advantages"], atol=1e-4, rtol=1e-4)

    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    mine = torch.autograd.grad(loss, weights)
    theirs = torch.autograd.grad(trainer._compute_loss(trainer.model, batch), weights)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_bradley_terry_is_the_packages():
    bradley_terry = essential("06_evaluation.ipynb")["bradley_terry"]
    wins = np.random.default_rng(3).integers(1, 30, size=(4, 4)) * (1 - np.eye(4))
    np.testing.assert_allclose(bradley_terry(wins + 0.5 * (1 - np.eye(4))), strengths(wins))


def test_bootstrap_is_the_packages():
    """The loop of notebook 06 draws the very numbers that the package draws at once."""
    bootstrap = essential("06_evaluation.ipynb")["bootstrap"]
    values = np.random.default_rng(5).normal(size=23)
    assert bootstrap(values, 500, 7) == bootstrap_interval(values, 500, 7)


def rewards_minus(baseline):
    """Advantages of notebook 05's exercise against a baseline of (rewards, place)."""
    return lambda rewards: [r - baseline(rewards, i) for i, r in enumerate(rewards)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda rewards: None, "not attempted"),
        (rewards_minus(lambda r, i: (sum(r) - r[i]) / 3), "✓"),
        (rewards_minus(lambda r, i: sum(r) / 4), "contains the sample itself"),
        (rewards_minus(lambda r, i: (sum(r) - r[i]) / 4), "n − 1"),
        (rewards_minus(lambda r, i: sum(r) - r[i]), "sum; the baseline is their mean"),
        (lambda r: [(sum(r) - x) / 3 - x for x in r], "sign"),
        (lambda r: [(sum(r) - x) / 3 for x in r], "these are the baselines"),
        (lambda r: 0.0, "shape"),
        (lambda r: ["a"] * 4, "expected numbers"),
        (lambda r: [9.0] * 4, "got [9. 9. 9. 9.]"),
    ],
)
def test_check_of_advantages(answer, said):
    assert said in checks.rl_advantages(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda r, p, q, m, b: None, "not attempted"),
        (lambda r, p, q, m, b: r - b * ((p - q) * m).sum(), "✓"),
        (lambda r, p, q, m, b: r - ((p - q) * m).sum(), "forgot the KL coefficient?"),
        (lambda r, p, q, m, b: r + b * ((p - q) * m).sum(), "sign"),
        (lambda r, p, q, m, b: r - b * (p - q).sum(), "padding"),
        (lambda r, p, q, m, b: r - b * ((p - q) * m).sum() / m.sum(), "mean over the tokens"),
        (lambda r, p, q, m, b: b * ((p - q) * m).sum(), "penalty alone"),
        (lambda r, p, q, m, b: r, "without any penalty"),
    ],
)
def test_check_of_the_penalised_reward(answer, said):
    assert said in checks.rl_penalised_reward(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda a, b: None, "not attempted"),
        (lambda a, b: [v - b[k] for k, v in a.items()], "✓"),
        (lambda a, b: [x - y for x, y in zip(a.values(), b.values(), strict=True)], "by prompt id"),
        (lambda a, b: [b[k] - v for k, v in a.items()], "later minus earlier"),
        (lambda a, b: [abs(v - b[k]) for k, v in a.items()], "dropped the sign"),
        (lambda a, b: 0.25, "one number"),
    ],
)
def test_check_of_pairing(answer, said):
    assert said in checks.evaluation_paired(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda m, lo, hi, n: None, "not attempted"),
        (lambda m, lo, hi, n: f"Now harmless ({lo}, {hi}, {n})", "shown to be harmless"),
        (lambda m, lo, hi, n: f"More by {m}, n={n}", "interval"),
        (lambda m, lo, hi, n: f"More: [{lo}, {hi}], n={n}", "does not say so"),
        (lambda m, lo, hi, n: f"We could not tell: [{lo}, {hi}], n={n}", "may say more"),
        (
            lambda m, lo, hi, n: f"{'More' if lo > 0 else 'Could not tell'} [{lo}, {hi}], n={n}",
            "✓",
        ),
    ],
)
def test_check_of_the_sentence(answer, said):
    assert said in checks.evaluation_sentence(answer)


def test_check_of_the_fooled_rule():
    assert "not attempted" in checks.evaluation_fool("")
    assert "a dozen words" in checks.evaluation_fool("I can't help.")
    assert "not fooled" in checks.evaluation_fool("Find its number with ps, then type kill. " * 2)
    solution = (
        "Find its number with ps and type kill and the number. You should not kill process 1, "
        "because the system would stop."
    )
    assert "✓" in checks.evaluation_fool(solution)


def test_tables_and_browsers_escape_what_models_say():
    from cai_lite.records import Answer, Completion

    rude = "<script>alert(1)</script>"
    row = Completion(id="1/0", step=1, prompt=rude, completion=rude, reward=0.5)
    answer = Answer(
        id="base/a", model="base", prompt_set="red_team", prompt_id="a", category="fraud",
        prompt=rude, response=rude, outcome="helps",
    )  # fmt: skip
    pages = [
        widgets.rl_table([row], [1.0]).data,
        widgets.rl_browser([row]).children[1].value,
        widgets.evaluation_table([answer]).data,
        widgets.evaluation_browser([answer]).children[1].value,
    ]
    assert not any("<script>" in page for page in pages)
    assert all("&lt;script&gt;" in page for page in pages)


def test_live_curves_are_drawn_anew_in_one_place(monkeypatch):
    drawn = []

    class Place:
        def update(self, figure):
            drawn.append(len(figure.axes[0].lines[0].get_xdata()))

    monkeypatch.setattr(widgets, "display", lambda first, display_id: Place())
    show = widgets.live_curves()
    steps = [{"step": n, "reward": 0.1, "kl": 0.0, "entropy": 1.0, "length": 9.0} for n in (1, 2)]
    show(steps[:1])
    show(steps)
    assert drawn == [1, 2]


def test_the_browser_filters_by_the_last_models_outcome():
    from cai_lite.records import Answer

    rows = [
        Answer(
            id=f"{model}/{prompt}", model=model, prompt_set="red_team", prompt_id=prompt,
            category="fraud", prompt=f"prompt {prompt}", response="text", outcome=outcome,
        )
        for model, prompt, outcome in (
            ("base", "a", "declines"), ("base", "b", "declines"),
            ("rl_cai", "a", "helps"), ("rl_cai", "b", "declines"),
        )
    ]  # fmt: skip
    box = widgets.evaluation_browser(rows)
    box.children[0].children[1].value = "declines"
    assert "prompt b" in box.children[1].value
    assert "prompt a" not in box.children[1].value
