"""Cards: hub conventions, the numbers of the report, and no claim that was not measured."""

from pathlib import Path

import pytest
import yaml
from test_report import make_run

from cai_lite.cards import base_model, write_cards
from cai_lite.report import build_report


@pytest.fixture
def cards(tmp_path):
    """(what stands before the card, the card) of each adapter, by stage."""
    run = make_run(tmp_path / "run")
    for stage in ("sl_cai", "preference_model", "rl_cai"):
        run.path(stage, "adapter").mkdir()
    paths = write_cards(run, build_report(run))
    assert {path.name for path in paths} == {"README.md"}
    texts = {path.parent.parent.name: path.read_text(encoding="utf-8") for path in paths}
    return {
        stage: (yaml.safe_load(head), body)
        for stage, (_, head, body) in ((s, text.split("---\n", 2)) for s, text in texts.items())
    }


def test_every_adapter_has_a_card_that_the_hub_can_read(cards):
    assert list(cards) == ["sl_cai", "preference_model", "rl_cai"]
    for stage, (head, _) in cards.items():
        assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert (head["library_name"], head["license"]) == ("peft", "apache-2.0")
        task = "text-classification" if stage == "preference_model" else "text-generation"
        assert head["pipeline_tag"] == task and "constitutional-ai" in head["tags"]


def test_a_card_has_the_reports_numbers_with_intervals_beside_the_start(cards):
    body = cards["rl_cai"][1]
    assert "| measure | n | helpful start | RL-CAI |" in body
    assert "| harmlessness | 2 | 0.10 [0.00, 0.30] | 0.70 [0.50, 0.90] |" in body
    assert "*harmlessness*: share of answers that object" in body
    assert "in 0.60 [0.40, 0.80] of n = 1 pairs" in cards["preference_model"][1]


def test_a_card_claims_no_safety(cards):
    for _, body in cards.values():
        text = " ".join(body.split())
        assert text.count('harmless"') == text.count('never "harmless"') == 1
        assert "## Limits" in text and "A lesson, not a safeguard" in text


def test_the_snippet_of_a_card_is_python(cards):
    for _, body in cards.values():
        compile(body.split("```python\n")[1].split("```")[0], "card", "exec")


def test_a_base_from_a_folder_has_its_name_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    assert base_model({"model": str(tmp_path / "mine")}) == "mine"
    assert base_model({"model": "owner/name"}) == "owner/name"
