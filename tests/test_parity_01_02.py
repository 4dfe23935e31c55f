"""What notebooks 01 and 02 do by hand is what the package does; their checks see mistakes."""

import ast
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cai_lite.constitution import CritiqueRevision
from cai_lite.engine.contrast import Probe, contrast_logits, probe_layers
from cai_lite.prompts import first_sentences
from cai_lite.records import Revision, Try
from cai_lite.run import begin_run
from cai_lite.stages.critique_revision import revision_fault
from cai_lite.teaching import checks, widgets
from cai_lite.texts import words

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def essential(name: str) -> dict[str, Any]:
    """The names that a notebook's essential cells define, run in order after its imports."""
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [c for c in code if "essential" in c["metadata"].get("tags", [])]
    assert tagged
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(imports, []), name, "exec"), names)
    for cell in tagged:
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= 25
        exec(compile(source, name, "exec"), names)
    return names


@pytest.fixture
def probe(tiny_base: Any) -> Probe:
    layers = probe_layers(tiny_base)
    size = len(layers) * tiny_base.body.config.hidden_size
    weights = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return Probe(layers, np.zeros(size, np.float32), np.ones(size, np.float32), weights)


BECAUSE = ", because it"


class Judge:
    """Stands in for `revision_fault`, or listens to it; keeps what it was asked."""

    def __init__(self, verdict: Any = None) -> None:
        self.verdict = verdict
        self.heard: list[tuple[Any, ...]] = []

    def __call__(
        self, row: Any, text: str, pair: Any, value: float, original: float, spirit: str
    ) -> str:
        self.heard.append((value, text, row.id, pair.id, original, spirit))
        if self.verdict:
            return self.verdict(text)
        return revision_fault(row, text, pair, value, original, spirit)


CASES = {  # a tiny model says nothing sound: fault by case, and how the texts end
    "filtered": (None, "."),
    "all sound": (lambda text: "", "."),
    "no sound reason": (lambda text: "loop" if BECAUSE in text else "", "."),
    "no finished reason": (lambda text: "", "."),
    "unfinished": (lambda text: "", " and"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_round_by_hand_is_the_packages(
    tmp_path: Path, tiny_preset: Any, tiny_base: Any, probe: Probe, case: str, monkeypatch: Any
) -> None:
    from cai_lite import prompts as layouts
    from cai_lite.stages import critique_revision as stage

    names = essential("01_critique_revision.ipynb")
    verdict, end = CASES[case]

    def ended(text: str, count: int = 2) -> str:
        said = first_sentences(text, count).rstrip(" .!?")
        return said if case == "no finished reason" and BECAUSE in text else said + end

    monkeypatch.setattr(stage, "first_sentences", ended)
    monkeypatch.setattr(layouts, "first_sentences", ended)  # the notebook's
    run = begin_run(tmp_path / "run", tiny_preset)
    drawn = run.prompts("red_team", "train", 3)
    rows = [
        Revision(id=f"{p.id}/0", prompt_id=p.id, prompt=p.prompt, round=0, response="Yes, do it.")
        for p in drawn
    ]
    pairs = run.constitution.critique_revision
    for row, pair in zip(rows, pairs, strict=False):
        mine, its = Judge(verdict), Judge(verdict)
        names["revision_fault"] = mine
        monkeypatch.setattr(stage, "revision_fault", its)

        def score(text: str, begin: str, row: Revision = row) -> float:
            (logit,) = contrast_logits(tiny_base, probe, [row.prompt], [text], 1, [begin])
            return round(float(1 / (1 + np.exp(-logit))), 4)

        critique, tried, kept = names["one_round"](run, tiny_base, score, row, pair, 1, 0.4)
        (theirs,) = stage.revise(
            run, tiny_base, probe, [(row, pair)], 1, original={row.prompt_id: 0.4}
        )
        assert (critique, kept) == (theirs.critique, theirs.response)
        for one, other in zip(tried, theirs.tries, strict=True):
            assert (one.response, one.fault) == (other.response, other.fault)
            assert math.isclose(one.score, other.score, abs_tol=2e-4)  # batches round otherwise
        for (value, *asked), (other_value, *also) in zip(mine.heard, its.heard, strict=True):
            assert asked == also and math.isclose(value, other_value, abs_tol=2e-4)

        reasons = [text for _, text, *_ in mine.heard if BECAUSE in text]
        sound = [one for one in tried if not one.fault]
        best = max(sound, key=lambda one: one.score, default=row)
        assert theirs.kept_previous is (best is row) is (case == "filtered")
        assert len(reasons) == (case in ("all sound", "no sound reason"))
        if case == "all sound":  # the step really happens
            assert kept == reasons[0] and kept.startswith(best.response[:-1] + BECAUSE)
        else:
            assert kept == best.response


def test_the_loss_by_hand_is_trls(tmp_path: Path, tiny_preset: Any, tiny_base: Any) -> None:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from cai_lite.engine.models import new_adapter
    from cai_lite.engine.training import common_arguments
    from cai_lite.prompts import chat
    from cai_lite.stages.sl_cai import neutral_row

    names = essential("02_sl_cai.ipynb")
    both = [
        ("How do I pick a lock?", "You shouldn't pick locks that are not yours."),
        ("What is tea?", "Leaves in hot water."),
        ("Name a colour: one word.", "Blue"),
        ("Say <|im_end|>", "Fine.<|im_end|>\n<|im_start|>user\nAnd now?"),  # forges no turn
    ]
    ids, mask = names["tokens_and_mask"](tiny_base, both)
    logits = tiny_base.model(ids).logits
    mine = names["answer_loss"](logits, ids, mask).item()

    rows = [
        {"prompt": chat(p), "completion": [{"role": "assistant", "content": a}]} for p, a in both
    ]
    run = begin_run(tmp_path / "run", tiny_preset)
    new_adapter(tiny_base, tiny_preset)
    arguments = SFTConfig(
        **common_arguments(run, tiny_base, "sl_cai"),
        per_device_train_batch_size=len(both),
        completion_only_loss=True,
        max_length=1024,
    )
    trainer = SFTTrainer(
        model=tiny_base.model,
        args=arguments,
        train_dataset=Dataset.from_list([neutral_row(tiny_base, row) for row in rows]),
        processing_class=tiny_base.tokenizer,
    )
    (batch,) = trainer.get_train_dataloader()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch)).item()
    counted = sorted(row[row != -100].tolist() for row in batch["labels"])
    assert counted == sorted(i[m == 1].tolist() for i, m in zip(ids, mask, strict=True))
    assert math.isclose(mine, theirs, rel_tol=1e-5)


def test_notebook_02_trains_by_the_package(
    tmp_path: Path, tiny_preset: Any, tiny_base: Any
) -> None:
    """The first loss that `fine_tune` reports is the notebook's on the same rows, before a step."""
    import torch

    from cai_lite.engine.models import new_adapter
    from cai_lite.records import HelpfulAnswer
    from cai_lite.stages.sl_cai import fine_tune, training_rows

    names = essential("02_sl_cai.ipynb")
    revised = [revision(1, "You shouldn't: it hurts him."), revision(2, "Please ask him first.")]
    helpful = [
        HelpfulAnswer(id="h/1", prompt="What is tea?", response="Leaves in hot water."),
        HelpfulAnswer(id="h/2", prompt="And mud?", response="mud mud mud", dropped="loop"),
    ]
    said = [(r.prompt, r.response) for r in [*revised, helpful[0]]]
    preset = tiny_preset.model_copy(update={"sl_batch": len(said), "sl_epochs": 1})
    new_adapter(tiny_base, preset)
    with torch.no_grad():
        ids, mask = names["tokens_and_mask"](tiny_base, said)
        mine = names["answer_loss"](tiny_base.model(ids).logits, ids, mask).item()
    rows = training_rows(revised, helpful)
    (theirs,) = fine_tune(begin_run(tmp_path / "run", preset), tiny_base, rows)
    assert math.isclose(mine, theirs, rel_tol=1e-4)


def leaks(text: str, request: str) -> bool:
    said, asked = words(text), words(request)
    runs = {tuple(asked[i : i + 5]) for i in range(len(asked) - 4)}
    return any(tuple(said[i : i + 5]) in runs for i in range(len(said) - 4))


def bootstrap(values: Any, draws: int, seed: int, cut: float = 0.025, replace: bool = True) -> Any:
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values), replace=replace).mean() for _ in range(draws)]
    return np.quantile(means, [cut, 1 - cut])


def sampled(names: Any, n: int, seed: int) -> Any:
    return random.Random(seed).sample(names, n)


TRIES: list[tuple[Any, Any, str]] = [
    (checks.critique_drawing, lambda p, n, s: ..., "not attempted"),
    (checks.critique_drawing, lambda p, n, s: random.Random(s).choices(p, k=n), "✓"),
    (checks.critique_drawing, sampled, "WITHOUT"),
    (checks.critique_drawing, lambda p, n, s: random.choices(p, k=n), "same seed"),
    (checks.critique_drawing, lambda p, n, s: random.Random(0).choices(p, k=n), "not used"),
    (checks.critique_drawing, lambda p, n, s: [random.Random(s).choice(p)] * n, "each text"),
    (checks.critique_drawing, lambda p, n, s: p[:3], "list of n"),
    (checks.critique_leak, lambda t, r: None, "not attempted"),
    (checks.critique_leak, leaks, "✓"),
    (checks.critique_leak, lambda t, r: bool(set(words(t)) & set(words(r))), "too strict"),
    (checks.critique_leak, lambda t, r: r in t, "whole request only"),
    (checks.critique_leak, lambda t, r: r[:30] in t, "small letters"),
    (checks.critique_leak, lambda t, r: False, "misses a text"),
    (checks.critique_leak, lambda t, r: not t or leaks(t, r), "empty"),
    (checks.critique_interval, lambda v, n, s: ..., "not attempted"),
    (checks.critique_interval, bootstrap, "✓"),
    (checks.critique_interval, lambda v, n, s: bootstrap(v, n, s, replace=False), "WITHOUT"),
    (checks.critique_interval, lambda v, n, s: bootstrap(v, n, s, cut=0.05), "2.5%"),
    (checks.critique_interval, lambda v, n, s: bootstrap(v, n, s, cut=0.001), "too wide"),
    (checks.critique_interval, lambda v, n, s: np.quantile(v, [0.025, 0.975]), "MEAN"),
    (checks.critique_interval, lambda v, n, s: bootstrap(v * 50, n, s), "far too narrow"),
    (checks.sl_mask, lambda p, a, w: None, "not attempted"),
    (checks.sl_mask, lambda p, a, w: [0] * p + [1] * a + [0] * (w - p - a), "✓"),
    (checks.sl_mask, lambda p, a, w: [1] * p + [0] * (w - p), "turned round"),
    (checks.sl_mask, lambda p, a, w: [1] * (p + a) + [0] * (w - p - a), "ask for harm"),
    (checks.sl_mask, lambda p, a, w: [0] * p + [1] * (w - p), "padding"),
    (checks.sl_mask, lambda p, a, w: [0, 0, 1, 1, 0, 0, 0], "shifted"),
    (checks.sl_mask, lambda p, a, w: [0] * p + [1] * a, "places"),
    (checks.sl_mask, lambda p, a, w: [0] * w, "cannot give"),
    (checks.sl_helpful_rows, lambda r, s: ..., "not attempted"),
    (checks.sl_helpful_rows, lambda r, s: round(r * s / (1 - s)), "✓"),
    (checks.sl_helpful_rows, lambda r, s: r * s, "43%"),
    (checks.sl_helpful_rows, lambda r, s: r * (1 - s) / s, "turned round"),
    (checks.sl_helpful_rows, lambda r, s: r / (1 - s), "ALL rows"),
    (checks.sl_helpful_rows, lambda r, s: 7, "are not 75%"),
    (checks.sl_helpful_rows, lambda r, s: 180, "share of 0"),
    (checks.sl_lora_size, lambda i, o, r: None, "not attempted"),
    (checks.sl_lora_size, lambda i, o, r: r * (i + o), "✓"),
    (checks.sl_lora_size, lambda i, o, r: i * o, "frozen"),
    (checks.sl_lora_size, lambda i, o, r: r * i * o, "multiply"),
    (checks.sl_lora_size, lambda i, o, r: r * i, "A alone"),
    (checks.sl_lora_size, lambda i, o, r: r * o, "B alone"),
    (checks.sl_lora_size, lambda i, o, r: 1, "add their sizes"),
]


@pytest.mark.parametrize("check, answer, said", TRIES)
def test_checks_see_the_specific_mistake(check: Any, answer: Any, said: str) -> None:
    verdict = check(answer)
    assert said in verdict
    assert verdict.startswith("✓") == (said == "✓")


def revision(number: int, response: str, **fields: Any) -> Revision:
    return Revision(
        id=f"p/{number}", prompt_id="p", prompt="<b>Why?</b>", round=number, response=response,
        **fields,
    )  # fmt: skip


def test_what_models_say_is_shown_and_never_run() -> None:
    rows = [revision(0, "<script>x</script> a b"), revision(1, "$a$ c", dropped="loop")]
    page = widgets.revision_table(rows).data
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>Why" not in page
    assert "$" not in page and "dropped: loop" in page and "<ins" in page and "<del" in page
    assert "<script>" not in widgets.loss_mask(["<script>", "\n"], [1, 0]).data
    assert "<i>" not in widgets.answers_table(["<i>"], {"<i>": ["<i>"]}).data


def test_the_stepper_shows_the_chosen_round_and_its_candidates() -> None:
    tries = [
        Try(response="<b>loop loop</b>", score=0.9, fault="loop"),
        Try(response="weak", score=0.2),
        Try(response="new", score=0.6),
    ]
    rows = [
        revision(0, "old"),
        revision(1, "new", principle="law", tries=tries),
        revision(0, "other").model_copy(update={"id": "q/0", "prompt_id": "q", "prompt": "Q?"}),
    ]
    principle, prompt, step, page = widgets.revision_stepper(rows).children
    assert [value for _, value in prompt.options] == ["p", "q"]
    principle.value = "law"
    assert [value for _, value in prompt.options] == ["p"]
    assert "new" in page.value and "&lt;b&gt;loop" in page.value and "<b>loop" not in page.value
    kept, weak, loop = (page.value.index(word) for word in ("kept</td>", "lower score", "0.90"))
    assert kept < weak < loop  # sound ones first, best first, then the dropped with their names
    step.value = 0
    assert "new" not in page.value and "old" in page.value and "loop" not in page.value


def test_the_explorer_tells_what_a_principle_did() -> None:
    pairs = [
        CritiqueRevision(id=name, critique_request=f"{name}?", revision_request="<i>Again.</i>")
        for name in ("law", "peace")
    ]
    rows = [
        revision(0, "old", score=0.4),
        revision(1, "new", score=0.6, principle="law"),
        revision(2, "new", score=0.6, principle="law", dropped="loop"),
    ]
    assert ">2</td>" in (page := widgets.principle_table(pairs, rows).data) and "+0.20" in page
    which, shown = widgets.principle_explorer(pairs, rows).children
    assert "law?" in shown.value and "dropped: loop" in shown.value and "<i>" not in shown.value
    which.value = "peace"
    assert "peace?" in shown.value and "dropped" not in shown.value and "—" in shown.value


def test_the_browser_shows_the_chosen_prompt() -> None:
    which, page = widgets.answers_browser(["a?", "b?"], {"base": ["one", "two"]}).children
    assert "one" in page.value
    which.value = 1
    assert "two" in page.value and "one" not in page.value
