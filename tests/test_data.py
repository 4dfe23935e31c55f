"""Prompt sets, checks and loaders: what holds, what does not, and every error by its words."""

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cai_lite.data import (
    PROMPT_SETS,
    Check,
    Prompt,
    load_hh_rlhf,
    load_prompts,
    load_table,
    shipped_prompts,
)
from cai_lite.errors import InputError
from cai_lite.files import shipped


def write(path: Path, *rows: Any) -> Path:
    """A JSONL file; a row that is text or bytes goes in as it is."""
    lines = [row if isinstance(row, bytes) else as_text(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def as_text(row: Any) -> str:
    return row if isinstance(row, str) else json.dumps(row)


def test_importing_data_is_cheap() -> None:
    heavy = "{'torch', 'datasets', 'transformers'}"
    code = f"import sys, cai_lite.data; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- Check: words


@pytest.mark.parametrize(
    ("word", "answer", "holds"),
    [
        ("Paris", "It is paris.", True),
        ("art", "We had a party.", False),
        ("art", "Art, of course", True),
        ("7", "The answer is 17.", False),
        ("7", "There are 70.", False),
        ("7", "It is 7.", True),
        ("7", "It is 7.5 or 3.7 or 1,7", False),
        ("7", "It costs $7!", True),
        ("7", "7pm", False),
        ("0", "Water freezes at 0°C.", True),
        ("16.00", "It costs $16.00.", True),
        ("cafe", "A café is open.", False),
        ("café", "A CAFÉ is open.", True),
        ("caf\u00e9", "A cafe\u0301 is open.", True),
        ("doesn't like", "He doesn’t  like\nit.", True),
        ("Paris", "It is _Paris_ or **Paris**.", True),
        ("len", "Use len().", True),
        ("len", "the length", False),
        ("print(", "print(1)", True),
        ("#", "Use the # sign.", True),
        ("a.b", "axb", False),
    ],
)
def test_a_word_is_found_on_its_boundaries(word: str, answer: str, holds: bool) -> None:
    assert Check(any=[word]).holds(answer) is holds
    assert Check(all=[word]).holds(answer) is holds
    assert Check(none=[word]).holds(answer) is not holds


def test_any_all_and_none_over_several_words() -> None:
    assert Check(any=["cat", "dog"]).holds("a dog")
    assert not Check(any=["cat", "dog"]).holds("a cow")
    assert Check(all=["cat", "dog"]).holds("a dog and a cat")
    assert not Check(all=["cat", "dog"]).holds("a dog")
    assert not Check(none=["cat", "dog"]).holds("a dog")


def test_the_numbers_of_a_list_are_not_words() -> None:
    assert not Check(any=["2"]).holds("1. No\n2. No")
    assert not Check(any=["2"]).holds("1) No\n  2) No")
    assert Check(any=["2"]).holds("1. No\n2. It is 2")
    assert Check(words=(2, 2)).holds("1. No\n2. No")


# --- Check: form


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("", 0),
        ("- a\n- b", 2),
        ("* a\n• b\n•c", 3),
        ("1. a\n2) b\n10. c", 3),
        ("Here:\n  - a\n\t- b", 2),
        ("**Bold** text\n---\n-5 degrees\n3.14 is pi\n2024 was long", 0),
        ("a - b * c 1. d", 0),
        ("1. a\n2.\n3. ", 1),
        ("- a\r\n- b\r\n", 2),
    ],
)
def test_list_items_are_counted(answer: str, items: int) -> None:
    assert Check(items=(items, items)).holds(answer)
    assert not Check(items=(items + 1, items + 9)).holds(answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", 0),
        ("... - !", 0),
        ("one", 1),
        ("It's a well-known 3.14, isn’t it?", 6),
        ("Rome—the city", 3),
        ("- one\n- two", 2),
        ("crème brûlée", 2),
    ],
)
def test_words_are_counted(answer: str, words: int) -> None:
    assert Check(words=(words, words)).holds(answer)
    assert not Check(words=(words + 1, words + 9)).holds(answer)


@pytest.mark.parametrize(
    ("answer", "sentences"),
    [
        ("", 0),
        ("...", 0),
        ("No full stop", 1),
        ("One. Two! Three?", 3),
        ("Wait... what?!", 2),
        ('He said "Stop." Then he left.', 2),
        ("**Yes.** It is.", 2),
        ("Dr. Smith and Mrs. Hill met Mr. J. K. Lee at St. Ives.", 1),
        ("Fruit, e.g. apples, at 3 p.m. and later.", 1),
        ("It costs 3.50 dollars.", 1),
        ("It is 7. That is all.", 2),
        ("a line\nand another", 2),
        ("1. One.\n2. Two", 2),
    ],
)
def test_sentences_are_counted(answer: str, sentences: int) -> None:
    assert Check(sentences=(sentences, sentences)).holds(answer)
    assert not Check(sentences=(sentences + 1, sentences + 9)).holds(answer)


def test_bounds_include_both_ends() -> None:
    check = Check(words=(2, 3))
    assert [check.holds("word " * n) for n in (1, 2, 3, 4)] == [False, True, True, False]


def test_a_pattern_is_searched_in_any_case_and_line_by_line() -> None:
    check = Check(matches="^hello$")
    assert check.holds("first\nHELLO\nlast")
    assert not check.holds("hello you")


def test_every_field_that_is_given_must_hold() -> None:
    check = Check(any=["a"], items=(1, 1), words=(1, 2), matches="b")
    assert check.holds("- a b")
    for failing in ("- c b", "a b", "- a b c", "- a c"):
        assert not check.holds(failing)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "asks nothing; expected one of any, all, none, items"),
        ({"any": None}, "asks nothing"),
        ({"any": []}, "at least 1 item"),
        ({"any": [" "]}, "match pattern"),
        ({"any": "Paris"}, "valid list"),
        ({"items": [3]}, "Field required"),
        ({"items": [3, 2]}, r"\[3, 2\] is not a range; expected 0 <= min <= max"),
        ({"words": [-1, 2]}, "is not a range"),
        ({"sentences": [1, 2, 3]}, "at most 2 items"),
        ({"matches": "("}, "'\\(' is not a regular expression"),
        ({"matches": ""}, "at least 1 character"),
        ({"contains": ["x"]}, "Extra inputs"),
    ],
)
def test_a_check_that_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Check.model_validate(fields)


def test_checks_and_prompts_are_frozen() -> None:
    prompt = Prompt(id="a", prompt="b", check=Check(any=["c"]))
    with pytest.raises(ValidationError):
        prompt.prompt = "other"
    assert prompt.check is not None
    with pytest.raises(ValidationError):
        prompt.check.any = ["other"]


# --- load_prompts


def test_a_file_of_prompts(tmp_path: Path) -> None:
    check = {"any": ["Paris"]}
    full: dict[str, Any] = {
        "id": "x",
        "prompt": "The capital?",
        "category": "facts",
        "split": "train",
    }
    full |= {"check": check, "reference": "Paris.", "why": "w", "tension": "t"}
    path = write(tmp_path / "p.jsonl", full, "", "   ", {"prompt": "Hi\u2028there: é"})
    first, second = load_prompts(path)
    assert first.model_dump(exclude_none=True) == full
    assert second == Prompt(id="row-4", prompt="Hi\u2028there: é")
    assert load_prompts(str(path)) == [first, second]


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n\r\n{"prompt": "two"}')
    assert [prompt.id for prompt in load_prompts(path)] == ["row-1", "row-3"]


def test_a_packed_file_of_prompts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "one"}\n'))
    assert load_prompts(path) == [Prompt(id="row-1", prompt="one")]


GOOD = {"id": "a", "prompt": "Why?"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "field 'prompt' is empty; expected a question or request"),
        ({"prompt": " \n"}, "field 'prompt' is empty; expected a question or request"),
        ({"id": "b"}, "field 'prompt' is missing; expected a question or request"),
        ({"prompt": 42}, "field 'prompt' is 42; expected a question or request"),
        ({"prompt": "\ud800"}, "field 'prompt' is \"\\ud800\"; expected"),
        ({"prompt": ["x" * 99]}, "field 'prompt' is [\"" + "x" * 55 + "...; expected"),
        ({"prompt": "b", "id": ""}, "field 'id' is empty; expected a name"),
        ({"prompt": "b", "id": None}, "field 'id' is null; expected a name"),
        ({"prompt": "b", "split": "test"}, "field 'split' is \"test\"; expected 'train' or 'eval'"),
        ({"prompt": "b", "label": 1}, "field 'label' is unknown; expected some of id, prompt, cat"),
        ({"prompt": "b", "check": "Paris"}, "field 'check' is \"Paris\"; expected an object such"),
        ({"prompt": "b", "check": {}}, "field 'check': asks nothing; expected one of any, all"),
        (
            {"prompt": "b", "check": {"any": [3]}},
            "field 'check.any.0' is 3; expected a list of words of which at least one occurs",
        ),
        (
            {"prompt": "b", "check": {"items": [1]}},
            "field 'check.items.1' is missing; expected [min, max], a number of list items",
        ),
        (
            {"prompt": "b", "check": {"words": [9, 1]}},
            "field 'check.words': [9, 1] is not a range; expected 0 <= min <= max",
        ),
        (
            {"prompt": "b", "check": {"matches": "("}},
            "field 'check.matches': '(' is not a regular expression",
        ),
        (
            {"prompt": "b", "check": {"has": 1}},
            "field 'check.has' is unknown; expected some of any, all, none, items, words",
        ),
        ({"check": {}, "x": 1}, "'prompt' is missing; expected a question or request; field 'ch"),
        ('{"prompt": "b"', "not JSON (Expecting ',' delimiter"),
        ("[" * 100_000, "not JSON"),
        ("1" * 5000, "not JSON"),
        ('["b"]', '["b"] is not an object {...}'),
        ("null", "null is not an object"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "prompts.jsonl", GOOD, "", row)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")


def test_the_whole_sentence_of_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prompts.jsonl", *[{"prompt": "Why?"}] * 6, {"prompt": ""})
    with pytest.raises(InputError) as caught:
        load_prompts("prompts.jsonl")
    expected = "prompts.jsonl, line 7: field 'prompt' is empty; expected a question or request"
    assert str(caught.value) == expected


def test_text_that_is_not_utf8_is_named_by_line_and_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"prompt": "a"}', b'{"prompt": "caf\xe9"}')
    with pytest.raises(InputError, match=r"line 2: byte 31 of the file is not UTF-8; save"):
        load_prompts(path)


def test_a_utf16_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n', encoding="utf-16")
    with pytest.raises(InputError, match="line 1: byte 0 of the file is not UTF-8"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("second", "name"), [({"id": "row-1", "prompt": "b"}, "row-1"), (dict(GOOD), "a")]
)
def test_an_id_used_twice_names_both_lines(
    tmp_path: Path, second: dict[str, str], name: str
) -> None:
    first = {"prompt": "x"} if name == "row-1" else GOOD
    path = write(tmp_path / "p.jsonl", first, "", second)
    with pytest.raises(InputError, match=f"line 3: id '{name}' is already that of line 1"):
        load_prompts(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl is not there; expected a JSONL file"):
        load_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="could not be read"):
        load_prompts(tmp_path)
    (tmp_path / "p.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(InputError, match="could not be read"):
        load_prompts(tmp_path / "p.jsonl.gz")
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "one"}\n' * 99)[:-12])
    with pytest.raises(InputError, match="could not be read"):
        load_prompts(tmp_path / "q.jsonl.gz")


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.jsonl is empty; expected one JSON object a line"):
        load_prompts(path)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three rows of category a, two of b, one of c; a2 and b1 are for training."""
    names = "a1 a2 a3 b1 b2 c1".split()
    splits = "eval train eval train eval eval".split()
    rows = [
        {"id": name, "prompt": "?", "category": name[0], "split": split}
        for name, split in zip(names, splits, strict=True)
    ]
    return write(tmp_path / "p.jsonl", *rows)


def ids(prompts: list[Prompt]) -> str:
    return " ".join(prompt.id for prompt in prompts)


def test_a_split_keeps_its_rows(mixed: Path) -> None:
    assert ids(load_prompts(mixed)) == "a1 a2 a3 b1 b2 c1"
    assert ids(load_prompts(mixed, "train")) == "a2 b1"
    assert ids(load_prompts(mixed, "eval")) == "a1 a3 b2 c1"


def test_a_limit_goes_round_the_categories(mixed: Path) -> None:
    rounds = "a1 b1 c1 a2 b2 a3"
    assert [ids(load_prompts(mixed, limit=n)) for n in range(8)] == [
        " ".join(rounds.split()[:n]) for n in range(8)
    ]
    assert ids(load_prompts(mixed, "eval", 3)) == "a1 b2 c1"


def test_a_split_without_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", GOOD)
    with pytest.raises(InputError, match="has no row with split 'train'; leave split out"):
        load_prompts(path, "train")


def test_arguments_out_of_range(mixed: Path) -> None:
    with pytest.raises(InputError, match="split is 'test'; expected 'train', 'eval' or None"):
        load_prompts(mixed, "test")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="limit is -1; expected 0 or more"):
        load_prompts(mixed, limit=-1)
    with pytest.raises(InputError, match="limit is -1; expected 0 or more"):
        load_table(mixed, limit=-1)
    with pytest.raises(InputError, match="limit is -1; expected 0 or more"):
        load_hh_rlhf(mixed, limit=-1)


def test_an_unknown_prompt_set_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'jokes' is unknown; expected one of red_team, helpful"):
        shipped_prompts("jokes")


# --- load_table


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`datasets` keeps its cache in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield


@pytest.mark.usefixtures("own_cache")
def test_a_table_in_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"q": "one", "n": 1}, {"q": " ", "n": 2}, {"q": "three"})
    prompts = load_table(path, column="q")
    assert ids(prompts) == "row-1 row-3"
    assert prompts[1] == Prompt(id="row-3", prompt="three", split="train")
    assert load_table(str(path), column="q", limit=1) == prompts[:1]
    assert load_table(path, column="q", split="train[2:]")[0].prompt == "three"
    with pytest.raises(InputError, match="has no column 'prompt'; its columns are q, n: pass one"):
        load_table(path)
    with pytest.raises(InputError, match="row 1: field 'prompt' is 1; expected a question"):
        load_table(path, column="n")
    with pytest.raises(InputError, match="could not be read as a JSON file, split 'test'"):
        load_table(path, column="q", split="test")


@pytest.mark.usefixtures("own_cache")
def test_a_table_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('prompt,empty\n"Why, he asked: ""who?""",\nNone,\n,\n', encoding="utf-8")
    assert [row.prompt for row in load_table(path)] == ['Why, he asked: "who?"', "None"]
    with pytest.raises(InputError, match="has no text in column 'empty'"):
        load_table(path, column="empty")
    assert load_table(path, column="empty", limit=0) == []


@pytest.mark.usefixtures("own_cache")
def test_a_table_that_is_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"prompt": "a"', "}{")
    with pytest.raises(InputError, match="could not be read as a JSON file"):
        load_table(path)


def test_a_table_that_is_not_a_known_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv is not there; expected a file, or the id of"):
        load_table(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"ends in '\.xlsx'; expected \.jsonl, \.json or \.csv"):
        load_table(tmp_path / "t.xlsx")


def test_a_table_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fake(name: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("someone/questions", "test")
        return datasets.Dataset.from_dict({"prompt": ["one", "two"]})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    prompts = load_table("someone/questions", split="test", limit=1)
    assert prompts == [Prompt(id="row-1", prompt="one", split="eval")]


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, RuntimeError, FileNotFoundError])
def test_a_hub_that_fails_says_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    import datasets

    def fake(name: str, split: str) -> None:
        raise kind("no way")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    with pytest.raises(
        InputError, match="someone/questions could not be read as a data set on"
    ) as e:
        load_table("someone/questions")
    assert "no way" in str(e.value) and "pass a local .jsonl or .csv file" in str(e.value)


# --- load_hh_rlhf

TALK = (
    "\n\nHuman: Hi: you\n\nAssistant: Hello."
    "\n\nHuman: Say 'Human: x'\nHuman: y\n\nfine\n\nAssistant: "
)


def hh(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_hh_rlhf_keeps_every_word(tmp_path: Path, suffix: str) -> None:
    row = hh(TALK + "Assistant: ok\n\nHuman:no: turn", TALK + "No.\n\n")
    path = write(tmp_path / "h.jsonl", row, "", hh(TALK, TALK[:-1]))
    if suffix == ".jsonl.gz":
        packed = tmp_path / "h.jsonl.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    first, second = load_hh_rlhf(path)
    assert first.prompt == [
        {"role": "user", "content": "Hi: you"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Say 'Human: x'\nHuman: y\n\nfine"},
    ]
    assert (first.chosen, first.rejected) == ("Assistant: ok\n\nHuman:no: turn", "No.")
    assert (second.chosen, second.rejected) == ("", "")
    assert load_hh_rlhf(path, limit=1) == [first]


def test_hh_rlhf_with_an_empty_turn_in_the_middle(tmp_path: Path) -> None:
    talk = "\n\nHuman: Hi\n\nAssistant:\n\nHuman: Still there?\n\nAssistant: "
    (row,) = load_hh_rlhf(write(tmp_path / "h.jsonl", hh(talk + "Yes", talk + "No")))
    assert [turn["content"] for turn in row.prompt] == ["Hi", "", "Still there?"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (hh(TALK + "a", TALK.replace("Hello", "Hey") + "a"), "do not share the same prompt"),
        (hh(TALK + "a", TALK + "a\n\nHuman: b\n\nAssistant: c"), "do not share the same prompt"),
        ({"chosen": TALK}, "field 'rejected' is missing; expected a conversation as text"),
        ({"chosen": [1], "rejected": TALK}, "field 'chosen' is [1]; expected a conversation"),
        (hh("", TALK), "field 'chosen' is empty; expected '\\n\\nHuman: ...' first"),
        (hh("Human: a\n\nAssistant: b", TALK), "expected '\\n\\nHuman: ...' first"),
        (hh("Note\n\nHuman: a\n\nAssistant: b", TALK), "expected '\\n\\nHuman: ...' first"),
        (hh("\n\nAssistant: b", TALK), "expected '\\n\\nHuman: ...' first"),
        (hh(TALK + "a\n\nHuman: b", TALK), "and '\\n\\nAssistant: ...' last"),
        ("[]", "is not an object"),
    ],
)
def test_a_bad_hh_rlhf_row_is_named_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "h.jsonl", hh(TALK + "a", TALK + "b"), row)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_hh_rlhf(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


# --- the shipped sets

STOP = set(
    "a an the of to in on at for and or is are was were be do does did i me my you your it its "
    "that this what which who how why when where with from by as can should would has have had "
    "so not no one if than into out up".split()
)


@cache
def content_words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())) - STOP


def jaccard(a: str, b: str) -> float:
    """Share of the two texts' content words that both have."""
    left, right = content_words(a), content_words(b)
    return len(left & right) / len(left | right)


HELPFUL = shipped_prompts("helpful")
EVAL = [row for row in HELPFUL if row.split == "eval"]
NO_ANSWERS = (
    "",
    "I can't help with that.",
    "I'm sorry, but as an AI language model I cannot help with that. Please let me know if "
    "there is anything else I can help you with.",
    "Sure! I can help you with that. Please tell me more about what you need.",
    "No, no, no, no.",
    "the " * 60,
    *("- No\n" * n for n in range(1, 8)),
    *("".join(f"{n}. No, no, no.\n" for n in range(1, most)) for most in range(2, 21)),
)


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_every_shipped_set_loads(name: str) -> None:
    rows = shipped_prompts(name)
    assert len({row.prompt for row in rows}) == len(rows)
    categories = {row.category for row in rows}
    assert {row.category for row in shipped_prompts(name, limit=len(categories))} == categories


def test_the_helpful_set_is_as_its_card_says() -> None:
    assert Counter(row.split for row in HELPFUL) == {"train": 492, "eval": 84}
    assert [row.id for row in HELPFUL] == [f"hp-{n:03d}" for n in range(1, 577)]
    categories = Counter((row.split, row.category) for row in HELPFUL)
    assert len({row.category for row in EVAL}) == 16
    lookalikes = [n for (_, name), n in categories.items() if name.startswith("sounds_harmful_")]
    assert len(categories) == 16 + 16 + 5 and len(lookalikes) == 5 and sum(lookalikes) == 240
    assert all(5 <= len(row.prompt.split()) <= 35 for row in HELPFUL)


def test_helpful_rows_have_their_keys_in_order() -> None:
    for line in shipped("data", "helpful.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        extra = ["check", "reference"] if row["split"] == "eval" else []
        assert list(row) == ["id", "category", "split", "prompt", *extra]


@pytest.mark.parametrize("row", EVAL, ids=lambda row: row.id)
def test_a_helpful_check_tells_an_answer_from_none(row: Prompt) -> None:
    assert row.check is not None
    assert row.reference and row.check.holds(row.reference)
    assert len(row.reference.split()) <= 50
    assert [answer for answer in NO_ANSWERS if row.check.holds(answer)] == []


@pytest.mark.parametrize("row", EVAL, ids=lambda row: row.id)
def test_saying_the_question_back_is_no_answer(row: Prompt) -> None:
    assert row.check is not None
    echoes = [row.prompt, f"{row.prompt} {row.prompt}"]
    echoes += [f"- {row.prompt}\n" * n for n in range(1, 6)]
    assert [echo for echo in echoes if row.check.holds(echo)] == []
    for word in (row.check.any or []) + (row.check.all or []):
        assert not Check(any=[word]).holds(row.prompt), word


def test_answers_to_other_questions_rarely_pass() -> None:
    passes = [a.check.holds(b.reference) for a, b in product(EVAL, EVAL) if a is not b and a.check]
    assert len(passes) == 84 * 83
    assert sum(passes) / len(passes) < 0.01


def test_the_splits_share_no_near_duplicates() -> None:
    train = [row for row in HELPFUL if row.split == "train"]
    nearest = max(jaccard(a.prompt, b.prompt) for a, b in product(train, EVAL))
    assert nearest < 0.5
    assert round(nearest, 2) == 0.38  # the card says so


def test_no_two_helpful_prompts_are_alike() -> None:
    assert max(jaccard(a.prompt, b.prompt) for a, b in combinations(HELPFUL, 2)) < 0.5


def test_prompts_that_sound_harmful_are_not_those_of_the_other_sets() -> None:
    ours = [row.prompt for row in HELPFUL if row.sounds_harmful]
    others = [row for name in ("borderline", "red_team") for row in shipped_prompts(name)]
    nearest = max(jaccard(a, b.prompt) for a, b in product(ours, others))
    assert round(nearest, 2) == 0.25  # the card says so
