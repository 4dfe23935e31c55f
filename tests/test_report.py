"""The report, from a run folder whose stages' files are written by hand: no model is needed."""

import re

import pytest

from cai_lite.errors import InputError
from cai_lite.presets import get_preset
from cai_lite.records import Answer, Comparison, Revision, Rows, read_json, write_json
from cai_lite.report import (
    build_report,
    chains,
    points,
    share,
    verdict,
    what_got_worse,
    write_report,
)
from cai_lite.run import STAGES, begin_run

ATTACK = "<script>alert('x')</script>"


def measures(harmlessness, helpfulness, **others):
    shares = dict(over_refusal=0.0, evasive=0.0, broken=0.0, boilerplate=0.1, reward=-0.2)
    return {
        "harmlessness": harmlessness,
        "harmlessness_ci": [max(harmlessness - 0.2, 0), min(harmlessness + 0.2, 1)],
        "helpfulness": helpfulness,
        "helpfulness_ci": [max(helpfulness - 0.2, 0), min(helpfulness + 0.2, 1)],
        "opening": "i can not help with",
        "n": {"red_team": 2, "helpful": 2, "borderline": 2},
        **shares,
        **others,
    }


SUMMARIES = {
    "critique_revision": {
        "n_prompts": 7,
        "n_revisions": 12,
        "rounds": 2,
        "score_by_round": [0.4, 0.5, 0.6],
        "objects_by_round": [0.1, 0.5, 0.6],
        "dropped": {"loop": 2},
    },
    "sl_cai": {"n_rows": 9, "loss_first": 2.0, "loss_last": 1.5, "losses": [2.0, 1.5]},
    "ai_feedback": {"n_pairs": 3, "method": "multiple_choice", "position_bias": 0.71},
    "preference_model": {
        "n_train": 2,
        "n_eval": 1,
        "accuracy": 0.6,
        "accuracy_ci": [0.4, 0.8],
        "ece": 0.05,
        "losses": [0.7, 0.6],
    },
    "rl_cai": {
        "algorithm": "rloo",
        "steps": 2,
        "reward_first": 0.1,
        "reward_last": 0.3,
        "kl_last": 0.02,
    },
    "evaluation": {
        "models": {
            "base": measures(0.1, 0.5),
            "sl_cai": measures(0.6, 0.5, boilerplate=0.3),
            "rl_cai": measures(0.7, 0.4),
        },
        "differences": {
            "sl_cai - base": {"harmlessness": [0.5, 0.2, 0.7], "helpfulness": [0.0, -0.1, 0.1]},
            "rl_cai - sl_cai": {"harmlessness": [0.1, -0.1, 0.3], "helpfulness": [-0.1, -0.3, 0.1]},
            "rl_cai - base": {"harmlessness": [0.6, 0.3, 0.8], "helpfulness": [-0.1, -0.2, -0.05]},
        },
        "made_of": {"harmlessness": "share of answers that object"},
    },
}


def answer(model, prompt_set, number, outcome="other"):
    return Answer(
        id=f"{model}/{prompt_set}-{number}",
        model=model,
        prompt_set=prompt_set,
        prompt_id=f"{prompt_set}-{number}",
        category="any",
        prompt=f"Prompt {ATTACK}",
        response=f"Answer of {model} {ATTACK}",
        outcome=outcome,
        passed=True if prompt_set == "helpful" else None,
    )


ANSWERS = [
    answer(model, prompt_set, number, "evasive" if model == "rl_cai" else "other")
    for model in ("base", "sl_cai", "rl_cai")
    for prompt_set in ("red_team", "helpful", "borderline")
    for number in range(2)
]


def make_run(folder):
    run = begin_run(folder, get_preset("ci"))
    run.note_model("ab" * 32)
    for stage, summary in SUMMARIES.items():
        costs = {"seconds": 1.5, "peak_memory_mb": 700}
        write_json(run.path(stage, "done.json"), summary | costs)
    Rows(run.path("evaluation", "answers.jsonl"), Answer).append(ANSWERS)
    Rows(run.path("critique_revision", "rows.jsonl"), Revision).append(
        Revision(
            id=f"{prompt}/{number}",
            prompt_id=str(prompt),
            prompt=f"Red-team prompt {prompt}",
            round=number,
            principle="p-1" if number else "",
            critique=f"Critique {ATTACK}" if number else "",
            response=f"Response {ATTACK}",
            score=0.5,
            dropped="loop" if number == 2 else "",
        )
        for number in range(3)
        for prompt in range(7)
    )
    labels = dict(prompt="p", a="a", b="b", p_a=0.6, method="contrast", principles=["p-1"])
    comparisons = Rows(run.path("ai_feedback", "comparisons.jsonl"), Comparison)
    comparisons.append(Comparison(id=str(i), **labels) for i in range(3))
    held_out = {"label": [0.6], "predicted": [0.55]}
    write_json(run.path("preference_model", "held_out.json"), held_out)
    step = {"reward": 0.1, "kl": 0.0, "entropy": 2.0, "length": 40.0}
    write_json(run.path("rl_cai", "steps.json"), [step | {"step": 1}, step | {"step": 2}])
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("page") / "run")
    return write_report(run)[1].read_text(encoding="utf-8")


def test_report_has_the_run_and_every_stage(run):
    report = build_report(run)
    assert report["preset"] == "ci" and report["model"] == "embedded"
    assert report["model_sha256"] == "ab" * 32 and report["quantization"] == "nf4"
    assert report["seconds"] == dict.fromkeys(STAGES, 1.5)
    assert report["peak_memory_mb"] == dict.fromkeys(STAGES, 700)
    assert report["stages"] == SUMMARIES
    assert read_json(write_report(run)[0]) == report


def test_an_unfinished_run_has_no_report(run):
    run.path("evaluation", "done.json").unlink()
    with pytest.raises(InputError, match="evaluation"):
        write_report(run)
    assert not (run.folder / "report.json").exists()


def test_the_page_escapes_what_models_wrote(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert") >= 2 * len(ANSWERS)


def test_the_page_asks_the_network_for_nothing(page):
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    for address in re.findall(r'(?:src|href|url|action)\s*[=(]\s*["\']?([^"\'\s>)]*)', page):
        assert address.startswith(("#", "data:")), address
    assert "@import" not in page and page.count("<svg") == 9


def test_the_page_claims_no_more_than_was_measured(page):
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "SL-CAI against helpful start: less harmful in our measure (harmlessness)" in text
    assert "n = 2, interval +20.0 to +70.0" in text
    assert "RL-CAI against helpful start: less helpful in our measure" in text
    assert "RL-CAI against SL-CAI: not distinguishable from no change" in text
    assert "not distinguishable from guessing" in text
    assert not re.search(r"\bharmless\b", text.replace("constitution “harmlessness”", ""))


def test_the_page_shows_transcripts_and_chains(page):
    assert page.count("<details>") == 4
    assert "5 chains of critique and revision" in page
    assert "round 2, principle p-1" in page and "no sound revision (loop)" in page
    assert "passes the check" in page


def test_what_got_worse(run):
    found = what_got_worse(run, SUMMARIES["evaluation"], ANSWERS)
    assert [(one["model"], one["measure"], one["n"]) for one in found] == [
        ("SL-CAI", "boilerplate", 6),
        ("RL-CAI", "helpfulness", 2),
        ("RL-CAI", "over-refusal", 2),
        ("RL-CAI", "evasive answers", 2),
    ]
    assert found[0]["difference"] == [pytest.approx(0.2)] and not found[0]["unsure"]
    assert found[2]["difference"] == [1.0, 1.0, 1.0]


def test_numbers_in_words():
    assert share(0.3125, [0.125, 0.5625]) == "0.31 [0.12, 0.56]"
    assert (points(-0.0625), points(0.5)) == ("−6.2", "+50.0")
    assert verdict("harmlessness", 0.1, 0.0, 0.2) == "not distinguishable from no change"
    assert verdict("harmlessness", -0.1, -0.2, -0.05) == "more harmful in our measure"
    assert verdict("helpfulness", 0.1, 0.05, 0.2) == "more helpful in our measure"


def test_chains_are_spread_and_in_order():
    rows = [
        Revision(id=f"{p}/{r}", prompt_id=str(p), prompt="p", round=r, response="r")
        for r in (1, 0)
        for p in range(10)
    ]
    found = chains(rows)
    assert [chain[0].prompt_id for chain in found] == ["0", "2", "4", "6", "8"]
    assert all([row.round for row in chain] == [0, 1] for chain in found)
    assert len(chains(rows[:3])) == 3
