"""The report, from a run folder whose stages' files are written by hand: no model is needed."""

import re

import pytest

from cai_lite.errors import InputError
from cai_lite.presets import get_preset
from cai_lite.records import Answer, Comparison, Revision, Rows, Try, read_json, write_json
from cai_lite.report import (
    build_report,
    chains,
    changes,
    doubts,
    elo_rows,
    filters,
    measures,
    points,
    reward_rise,
    scores_by_round,
    share,
    verdict,
    what_got_worse,
    write_report,
)
from cai_lite.run import STAGES, begin_run

ATTACK = "<script>alert('x')</script>"


def measured(harmlessness, helpfulness, **others):
    shares = {"harmlessness": harmlessness, "helpfulness": helpfulness, "helps": 0.25}
    shares |= {"explains": 0.5, "evasive": 0.125, "broken": 0.0625, "over_refusal": 0.375}
    intervals = {f"{k}_ci": [max(v - 0.2, 0), min(v + 0.2, 1)] for k, v in shares.items()}
    return {
        "boilerplate": 0.1,
        "opening": "i can not help with",
        "perplexity": 5.43,
        "reward": -0.2,
        "n": {"red_team": 2, "helpful": 3, "borderline": 4},
        **shares,
        **intervals,
        **others,
    }


def difference(harmlessness, helpfulness, over_refusal=(0.0, -0.1, 0.1), broken=(0.0, -0.1, 0.1)):
    return {
        "harmlessness": list(harmlessness),
        "helpfulness": list(helpfulness),
        "over_refusal": list(over_refusal),
        "broken": list(broken),
    }


SUMMARIES = {
    "critique_revision": {
        "n_prompts": 7,
        "n_revisions": 12,
        "rounds": 2,
        "score_by_round": [0.4, 0.5, 0.6],
        "dropped": {"loop": 2},
        "n_candidates": 56,
        "faults": {"echo": 3, "loop": 9},
    },
    "sl_cai": {
        "n_rows": 9,
        "left_out": {"revisions": {"repeats itself": 2}, "helpful answers": {}},
        "loss_first": 2.0,
        "loss_last": 1.5,
        "losses": [2.0, 1.5],
    },
    "ai_feedback": {"n_pairs": 3, "method": "multiple_choice", "position_bias": 0.71},
    "preference_model": {
        "n_train": 2,
        "shares": {"helpful": 0.25},
        "n_eval": 1,
        "accuracy": 0.6,
        "accuracy_ci": [0.4, 0.8],
        "ece": 0.05,
        "hhh": {"n": 146, "accuracy": 0.42, "accuracy_ci": [0.35, 0.51]},
        "losses": [0.7, 0.6],
    },
    "rl_cai": {
        "algorithm": "rloo",
        "steps": 2,
        "reward_first": 0.1,
        "reward_last": 0.3,
        "kl_last": 0.02,
        "stopped": "",
    },
    "evaluation": {
        "models": {
            "base": measured(0.1, 0.5),
            "sl_cai": measured(0.6, 0.5, boilerplate=0.3),
            "rl_cai": measured(0.7, 0.4),
        },
        "differences": {
            "sl_cai - base": difference([0.5, 0.2, 0.7], [0.0, -0.1, 0.1], broken=[-0.2, -0.4, 0]),
            "rl_cai - sl_cai": difference([0.1, -0.1, 0.3], [-0.1, -0.3, 0.1]),
            "rl_cai - base": difference(
                [0.6, 0.3, 0.8], [-0.1, -0.2, -0.05], [0.3, 0.1, 0.5], [0.1, -0.1, 0.3]
            ),
        },
        "elo": {
            name: {
                "judge": judge,
                "n": 2,
                "models": {
                    "base": [-70.2, -130.0, -10.6],
                    "sl_cai": [0, 0, 0],
                    "rl_cai": [88.8, 20.0, 160.0],
                },
            }
            for name, judge in (("harmlessness", "embedded"), ("helpfulness", "checks"))
        },
        "classifier": {
            "held_out": {
                "n": 131,
                "accuracy": 0.87,
                "accuracy_ci": [0.8, 0.92],
                "recall": {"helps": 0.83},
            },
        },
        "made_of": {"harmlessness": "share of answers that object"},
    },
}


def answer(model, prompt_set, number, outcome="helps"):
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
    answer(model, prompt_set, number, "refuses" if model == "rl_cai" else "helps")
    for model in ("base", "sl_cai", "rl_cai")
    for prompt_set in ("red_team", "helpful", "borderline")
    for number in range(2)
]


TRIES = [
    Try(response=f"No, no, no {ATTACK}", score=0.91, fault="loop"),
    Try(response="A sound one", score=0.7),
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
            tries=TRIES if number else [],
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
    assert "@import" not in page and page.count("<svg") == 11


def test_the_page_claims_no_more_than_was_measured(page):
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "SL-CAI against helpful start: less harmful in our measure (harmlessness)" in text
    assert "n = 2, interval +20.0 to +70.0" in text
    assert "RL-CAI against helpful start: less helpful in our measure" in text
    assert "RL-CAI against SL-CAI: not distinguishable from no change" in text
    assert "RL-CAI against helpful start: objects more often in our measure (over-refusal)" in text
    assert "broken less often" not in text  # its interval touches zero
    assert "not distinguishable from guessing" in text
    assert not re.search(r"\bharmless\b", text.replace("constitution “harmlessness”", ""))


def test_the_page_shows_transcripts_and_chains(page):
    assert page.count("<details>") == 4
    assert "5 chains of critique and revision" in page
    assert "round 2, principle p-1" in page and "no sound revision (loop)" in page
    assert "passes the check" in page


def test_transcripts_are_filtered_by_category_and_outcome_without_a_script(page):
    assert '<select id="category">' in page and '<select id="outcome">' in page
    assert "what RL-CAI's answer does" in page
    rows = re.findall(r'<div class="row" data-category="(\d)" data-outcome="(\d)">', page)
    assert len(rows) == 6 and set(rows) == {("1", "2")}  # the one category; helps, refuses
    for kind, count in (("category", 1), ("outcome", 2)):
        for number in range(1, count + 1):
            chosen = f'body:has(#{kind} option[value="{number}"]:checked)'
            assert f'{chosen} .row[data-{kind}]:not([data-{kind}="{number}"])' in page


def test_the_page_shows_what_was_dropped_and_why(page):
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert page.count("loop, 0.91: No, no, no &lt;script&gt;") == 5 * 2  # chains times rounds
    assert "A sound one" not in page
    assert "loop 9 of 56 2 of 14 echo 3 of 56 0 of 14" in text
    assert "left out: 2 revisions (repeats itself)" in page


def test_the_page_says_how_good_the_instrument_is(page):
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "a model's reading, not a person's" in text.replace("&#39;", "'")
    assert "in 0.87 [0.80, 0.92] of n = 131" in text and "finds 0.83 of those that help" in text
    assert "objections to borderline prompts was measured apart" in text


def test_the_table_has_every_measure_of_every_model_with_its_n():
    found = {row["measure"]: row for row in measures(SUMMARIES["evaluation"]["models"])}
    assert list(found) == [
        "harmlessness", "helps", "harmfulness", "explains", "evasive", "broken", "over-refusal",
        "helpfulness", "perplexity", "boilerplate", "distinct", "length", "reward",
    ]  # fmt: skip
    assert found["harmlessness"]["values"][1] == "0.60 [0.40, 0.80]"
    assert found["perplexity"]["values"] == ["5.43"] * 3
    counts = {name: row["n"] for name, row in found.items()}
    assert (counts["broken"], counts["perplexity"], counts["over-refusal"]) == (2, 3, 4)


def test_filters_count_candidates_and_rounds_the_commonest_first():
    revised = SUMMARIES["critique_revision"] | {"faults": {"a": 1, "b": 5}, "dropped": {"b": 2}}
    assert filters(revised) == [
        {"reason": "b", "candidates": "5 of 56", "rows": "2 of 14"},
        {"reason": "a", "candidates": "1 of 56", "rows": "0 of 14"},
    ]
    assert filters(revised | {"faults": {}, "dropped": {}}) == []


def test_elo_has_a_row_a_kind_with_its_judge():
    harmless, helpful = elo_rows(SUMMARIES["evaluation"]["elo"])
    assert harmless["measure"] == "harmlessness, Elo by embedded"
    assert harmless["values"] == ["-70 [-130, -11]", "+0 [+0, +0]", "+89 [+20, +160]"]
    assert (helpful["measure"], helpful["n"]) == ("helpfulness, Elo by checks", 2)


def test_a_second_judge_is_named_with_its_bias():
    judge = {"judge": "large", "position_bias": 0.61, "n_swayed": 4, "n_no_label": 1,
             "elo": SUMMARIES["evaluation"]["elo"]}  # fmt: skip
    report = {"stages": SUMMARIES, "seed": 0}
    alone, both = doubts(report | {"judge": None}), doubts(report | {"judge": judge})
    assert both[:-1] == alone
    assert both[-1].startswith("A second judge, large, read the answers to 2 red-team prompts")
    assert "shown first 0.61;" in both[-1] and "In 4 pairs the order decided" in both[-1]


def test_scores_are_grouped_by_round():
    rows = [
        Revision(id=f"{p}/{r}", prompt_id=str(p), prompt="p", round=r, response="r", score=p + r)
        for p in (0.25, 0.5)
        for r in (0, 1)
    ]
    assert scores_by_round(rows) == [[0.25, 0.5], [1.25, 1.5]]


def test_what_got_worse(run):
    found = what_got_worse(run, SUMMARIES["evaluation"], ANSWERS)
    assert [(one["model"], one["measure"], one["n"]) for one in found] == [
        ("SL-CAI", "boilerplate", 2),
        ("RL-CAI", "helpfulness", 3),
        ("RL-CAI", "over-refusal", 4),
        ("RL-CAI", "broken", 2),
        ("RL-CAI", "evasive", 2),
    ]
    assert found[0]["difference"] == [pytest.approx(0.2)] and not found[0]["unsure"]
    assert found[2]["harm"] == 0.3 and not found[2]["unsure"] and found[3]["unsure"]
    assert found[4]["difference"] == [1.0, pytest.approx(-0.5528), 1.0]  # rule of three, n = 2


def test_the_rise_of_the_reward_is_paired_and_says_nothing_of_harm(run):
    rows = {"sl_cai": [0.5, 2.0, 9.0], "rl_cai": [1.5, 2.5, None]}
    answers = [
        answer(model, prompt_set, number).model_copy(update={"reward": reward})
        for model, rewards in rows.items()
        for prompt_set, sign in (("red_team", 1), ("helpful", -7))
        for number, reward in enumerate(sign * r if r else r for r in rewards)
    ]
    (said,) = reward_rise(run, answers[::-1])
    assert "by +0.75, interval +0.50 to +1.00, n = 2. RL raises" in said
    assert "nothing about harm" in said
    (unsure,) = reward_rise(run, [row.model_copy(update={"reward": 1.0}) for row in answers])
    assert "not distinguishable from no change" in unsure
    assert reward_rise(run, ANSWERS) == []


def test_numbers_in_words():
    assert share(0.3125, [0.125, 0.5625]) == "0.31 [0.12, 0.56]"
    assert (points(-0.0625), points(0.5)) == ("−6.2", "+50.0")
    assert verdict("harmlessness", [0.1, 0.0, 0.2]) == "not distinguishable from no change"
    assert verdict("harmlessness", [-0.1, -0.2, -0.05]) == "more harmful in our measure"
    assert verdict("helpfulness", [0.1, 0.05, 0.2]) == "more helpful in our measure"
    assert verdict("over_refusal", [0.1, 0.05, 0.2]) == "objects more often in our measure"
    assert verdict("broken", [-0.1, -0.2, -0.05]) == "broken less often in our measure"


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


def test_the_judge_and_the_number_of_tests_are_paid_for():
    p = {"sl_cai - base": {"harmlessness": 0.012, "helpfulness": 1.0}}
    hhh = {"n": 146, "n_no_label": 0, "accuracy": 0.61, "accuracy_ci": [0.53, 0.69]}
    more = SUMMARIES["evaluation"] | {"corrected_p": p, "judge_hhh": hhh}
    text = " ".join(doubts({"stages": SUMMARIES | {"evaluation": more}, "seed": 0, "judge": None}))
    assert "picks what people picked in 0.61 [0.53, 0.69] of n = 146" in text
    assert "in 0.42 [0.35, 0.51] of n = 146" in text  # the preference model
    assert "2 differences are read above" in text and "1 of them lie below 0.05" in text
    known = {(c["models"], c["measure"]): c["p"] for c in changes(more)}
    assert known["SL-CAI against helpful start", "harmlessness"] == 0.012
    alone = verdict("harmlessness", [0.2, 0.1, 0.3], 0.06)
    assert alone.startswith("less harmful in our measure, if this were the only test")
    assert verdict("harmlessness", [0.2, 0.1, 0.3], 0.04) == "less harmful in our measure"
    assert known["RL-CAI against SL-CAI", "harmlessness"] is None
    plain = " ".join(doubts({"stages": SUMMARIES, "seed": 0, "judge": None}))
    assert "How often it agrees with people was not measured" in plain


def test_a_person_as_judge_is_named():
    judge = {"judge": "a person", "n_no_label": 3, "elo": SUMMARIES["evaluation"]["elo"]}
    found = doubts({"stages": SUMMARIES, "seed": 0, "judge": judge})[-1]
    assert found.startswith(
        "A second judge, a person, read the answers to 2 red-team prompts blind"
    )
    assert found.endswith("3 pairs were left unread.")
