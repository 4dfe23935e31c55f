"""Checks on the shipped red-team, borderline and edge-case prompts."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cai_lite.constitution import load_constitution
from cai_lite.engine.reader import GENERAL

DATA = Path(__file__).parents[1] / "data"

FIELDS = {
    "red_team": ["id", "category", "split", "prompt"],
    "borderline": ["id", "category", "prompt", "why"],
    "edge_cases": ["id", "category", "prompt", "tension"],
}
COUNTS = {"red_team": 336, "borderline": 72, "edge_cases": 48}
PREFIX = {"red_team": "rt", "borderline": "bl", "edge_cases": "ec"}

# Words that carry no topic. All others count as content words.
STOP = frozenset(
    """
    a about am an and any are as at be because been but by can could d did do does don for from
    get give had has have he help her him his how i if in into is isn it its just like ll m make
    me my no not of off on or our out re s she should so some t tell than that the their them
    then there they this to too up us ve want was we what when where which who whom why will
    with without would write you your
    """.split()
)

# Whole words that must not appear: operational detail, brands, named platforms.
FORBIDDEN = frozenset(
    """
    acetone ammonia ammonium arsenic bleach chlorine cyanide ethanol fertilizer fertiliser
    gasoline glycerin glycerine hydrogen mercury napalm nitrate nitroglycerin peroxide phosphorus
    potassium ricin sarin sulfur sulphur sulfuric sulphuric thermite anthrax
    amphetamine cocaine ecstasy fentanyl heroin ketamine lsd mdma meth methamphetamine morphine
    opioid oxycodone paracetamol acetaminophen ibuprofen rohypnol valium xanax mg milligram
    milligrams ml millilitre gram grams overdose
    botnet ddos exploit keylogger malware metasploit nmap ransomware rootkit shellcode sqli xss
    amazon android apple bitcoin chatgpt discord ebay facebook gmail google instagram iphone
    linkedin microsoft netflix openai paypal reddit snapchat telegram tesla tiktok tinder twitter
    uber visa whatsapp wikipedia windows youtube
    sex sexual sexy nude naked porn rape
    """.split()
)


@cache
def load(name):
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words(prompt):
    return re.findall(r"[a-z]+", prompt.lower())


def content_words(prompt):
    return frozenset(words(prompt)) - STOP


def jaccard(a, b):
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


def normal(prompt):
    return " ".join(words(prompt))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_count_and_fields(name):
    rows = load(name)
    assert len(rows) == COUNTS[name]
    for row in rows:
        assert list(row) == FIELDS[name]
        for value in row.values():
            assert isinstance(value, str)
            assert value and value == value.strip()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_ids_are_unique_and_in_order(name):
    ids = [row["id"] for row in load(name)]
    assert ids == [f"{PREFIX[name]}-{n:03d}" for n in range(1, COUNTS[name] + 1)]


def test_prompts_are_unique_over_all_sets():
    prompts = [normal(row["prompt"]) for name in FIELDS for row in load(name)]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_prompt_length(name):
    for row in load(name):
        assert 5 <= len(row["prompt"].split()) <= 40, row["id"]


def test_red_team_split_sizes():
    sizes = Counter(row["split"] for row in load("red_team"))
    assert set(sizes) == {"train", "eval"}
    assert sizes["train"] >= 240
    assert sizes["eval"] >= 80


def test_red_team_categories_are_in_both_splits():
    rows = load("red_team")
    per_split = {
        split: Counter(row["category"] for row in rows if row["split"] == split)
        for split in ("train", "eval")
    }
    assert set(per_split["train"]) == set(per_split["eval"])
    assert len(per_split["eval"]) >= 12
    assert set(per_split["train"].values()) == {18}
    assert set(per_split["eval"].values()) == {6}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_rows_are_grouped_by_category(name):
    seen = [row["category"] for row in load(name)]
    changes = 1 + sum(a != b for a, b in zip(seen, seen[1:], strict=False))
    assert changes == len(set(seen))


def test_no_near_duplicates_across_the_split():
    rows = load("red_team")
    train = [(r["id"], content_words(r["prompt"])) for r in rows if r["split"] == "train"]
    held_out = [(r["id"], content_words(r["prompt"])) for r in rows if r["split"] == "eval"]
    close = [(a, b) for a, wa in train for b, wb in held_out if jaccard(wa, wb) >= 0.5]
    assert close == []


@pytest.mark.parametrize("other", ["borderline", "edge_cases"])
def test_red_team_does_not_overlap_the_other_sets(other):
    asks = [content_words(r["prompt"]) for r in load("red_team")]
    for row in load(other):
        mine = content_words(row["prompt"])
        assert max(jaccard(mine, ask) for ask in asks) < 0.5, row["id"]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_forbidden_words(name):
    for row in load(name):
        assert not FORBIDDEN & set(words(row["prompt"])), row["id"]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_prompts_hold_no_links_numbers_or_odd_characters(name):
    for row in load(name):
        assert re.search(r"https?:|www\.|@", row["prompt"]) is None, row["id"]
        assert row["prompt"].isascii(), row["id"]
        if name == "red_team":
            assert re.search(r"\d", row["prompt"]) is None, row["id"]


def test_borderline_rows_say_why_they_are_harmless():
    assert all(row["why"].startswith("harmless because ") for row in load("borderline"))


def test_edge_cases_name_two_sides():
    assert all(" vs. " in row["tension"] for row in load("edge_cases"))


@pytest.mark.parametrize("name", ["dialogues", "talks"])
def test_dialogues_are_fit_for_a_classroom_and_balanced(name):
    rows = load(name)
    known = {p.id for p in load_constitution("harmlessness").comparison} | GENERAL
    assert len({row["id"] for row in rows}) == len(rows) and len(rows) >= 300
    assert {row["principle"] for row in rows} <= known
    for row in rows:
        text = " ".join(row[part] for part in ("prompt", "good", "bad"))
        assert not FORBIDDEN & set(words(text)), row["id"]
        assert row["good"] != row["bad"] and min(len(row["good"]), len(row["bad"])) > 20
    longer = sum(len(row["good"]) > len(row["bad"]) for row in rows) / len(rows)
    assert 0.4 < longer < 0.6  # length does not give the better answer away


@pytest.mark.parametrize("name", ["dialogues", "talks"])
@pytest.mark.parametrize("measured", ["conversations", "pairs", "outcomes"])
def test_dialogues_share_nothing_with_what_measures(name, measured):
    names = {"conversations": "conversations", "pairs": "pairs", "outcomes": "answers"}
    path = Path(__file__).parent / "data" / measured / f"{names[measured]}.jsonl"
    measures = path.read_text(encoding="utf-8").lower()
    heard = words(measures)
    runs = set(zip(*(heard[i:] for i in range(7)), strict=False))
    for row in load(name):
        said = words(f"{row['good']} {row['bad']}")
        assert not runs & set(zip(*(said[i:] for i in range(7)), strict=False)), row["id"]
