"""Constitutions: the shipped ones, every complaint about a broken one, and the round trip."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SMALL_CONSTITUTION
from pydantic import ValidationError

from cai_lite.constitution import (
    MAX_BYTES,
    Constitution,
    CritiqueRevision,
    Principle,
    constitution_sha256,
    draw,
    load_constitution,
    parse_constitution,
    save_constitution,
    shipped_constitutions,
)
from cai_lite.errors import InputError
from cai_lite.files import shipped

FIELDS = (
    "name, description, spirit, critique_opening, revision_openings, "
    "reason_opening, critique_revision, comparison"
)

HERE = Path(__file__)
PAPER = Path(os.environ.get("CAI_LITE_PAPER") or HERE.parents[2] / "shared" / "paper")

GOOD = f"""\
{SMALL_CONSTITUTION}  - id: two
    principle: Choose the kinder response.
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def complaint(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        load_constitution(path)
    return str(caught.value)


# --- the shipped ones


SHIPPED = ["harmlessness", "one-principle", "say-nothing", "sea-captain"]


def test_four_constitutions_are_shipped() -> None:
    assert shipped_constitutions() == SHIPPED


@pytest.mark.parametrize(
    ("name", "pairs", "principles"),
    [
        ("harmlessness", 16, 16),
        ("one-principle", 1, 1),
        ("say-nothing", 5, 5),
        ("sea-captain", 5, 5),
    ],
)
def test_shipped_constitution_is_whole(name: str, pairs: int, principles: int) -> None:
    constitution = load_constitution(name)
    assert constitution.name == name
    assert len(constitution.critique_revision) == pairs
    assert len(constitution.comparison) == principles
    for principle in constitution.comparison:
        assert all(principle.model_dump().values()), principle.id
        assert principle.principle.startswith("Choose the response")
        assert principle.question.endswith("?")


@pytest.mark.parametrize("name", ["harmlessness", "say-nothing", "sea-captain"])
def test_openings_vary(name: str) -> None:
    comparison = load_constitution(name).comparison
    assert len({p.good_opening for p in comparison}) == len(comparison)
    assert len({p.bad_opening for p in comparison}) == len(comparison)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _runs(text: str, n: int = 6) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's files are not here")
def test_shipped_text_is_our_own() -> None:
    files = sorted(PAPER.rglob("*.json"))
    assert len(files) == 5
    theirs = {run for f in files for s in _strings(json.loads(f.read_text())) for run in _runs(s)}
    assert len(theirs) > 1000
    for name in shipped_constitutions():
        text = shipped("constitutions", f"{name}.yaml").read_text(encoding="utf-8")
        ours = {run for line in text.splitlines() for run in _runs(line)}
        ours |= {run for s in _strings(load_constitution(name).model_dump()) for run in _runs(s)}
        assert not ours & theirs, name


# --- reading


def test_path_and_defaults(write: Write) -> None:
    constitution = load_constitution(write(GOOD))
    two = Principle(id="two", principle="Choose the kinder response.")
    assert constitution.comparison[1] == two
    assert two.good_opening == ""
    assert load_constitution(str(write(GOOD))) == constitution


def test_a_text_is_read_as_its_file_is(write: Write) -> None:
    assert parse_constitution(GOOD) == load_constitution(write(GOOD))
    for text in (GOOD.replace("principle:", "principal:"), "[", "", "a: *b", GOOD + GOOD):
        path = write(text)
        with pytest.raises(InputError) as caught:
            parse_constitution(text)
        assert str(caught.value) == complaint(path).replace(str(path), "the text")


def test_scalars_stay_the_text_that_was_written(write: Write) -> None:
    text = GOOD.replace("id: two", "id: 2024-13-45\n    good_opening: No\n    bad_opening:")
    principle = load_constitution(write(text)).comparison[1]
    assert (principle.id, principle.good_opening, principle.bad_opening) == ("2024-13-45", "No", "")


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_constitution(path).name == "small"


def test_objects_are_frozen_and_strict() -> None:
    pair = CritiqueRevision(id=" a ", critique_request="b", revision_request="c")
    assert pair.id == "a"
    with pytest.raises(ValidationError, match="frozen"):
        pair.id = "d"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="ids used more than once: a"):
        Constitution(
            name="n",
            description="d",
            critique_revision=[pair, pair],
            comparison=[Principle(id="a", principle="p")],
        )


# --- complaints: (what to replace, by what, what the message must say)

BROKEN = {
    "missing field": (
        "    principle: Choose the kinder response.\n",
        "",
        "line 10: comparison[1].principle is missing",
    ),
    "missing top field": ("name: small\n", "", "line 1: name is missing"),
    "unknown field": (
        "revision_request: Mend it.",
        "revision_request: Mend it.\n    severity: high",
        "line 7: critique_revision[0].severity is not a field; "
        "the fields here are id, critique_request, revision_request",
    ),
    "unknown top field": (
        "name: small",
        "name: small\nauthor: me",
        f"line 2: author is not a field; the fields here are {FIELDS}",
    ),
    "unknown field of a principle": (
        "id: two",
        "id: two\n    quesion: Is it?",
        "line 11: comparison[1].quesion is not a field; the fields here are "
        "id, principle, question, good, bad, good_opening, bad_opening",
    ),
    "empty text": ("Mend it.", '"  "', "line 6: critique_revision[0].revision_request is empty"),
    "null": ("Mend it.", "~", "line 6: critique_revision[0].revision_request is empty"),
    "list for text": (
        "Mend it.",
        "[a, b]",
        "line 6: critique_revision[0].revision_request should be text, found a list",
    ),
    "text for a principle": (
        "comparison:",
        "comparison:\n  - be kind",
        "line 8: comparison[0] should have the fields id, principle, question, good, bad, "
        "good_opening, bad_opening, found text",
    ),
    "repeated id": ("id: two", "id: one", "line 10: comparison[1].id 'one' is taken on line 8"),
    "repeated key": (
        "name: small",
        "name: small\nname: big",
        "line 2: name is here again, first on line 1",
    ),
    "a key that is not text": (
        "name: small",
        "name: small\n? [a]\n: b",
        "line 2: field name expected, found a list",
    ),
    "not YAML": ("name: small", "name: [small", "line 2: not YAML ("),
    "tab": ("  - id: two", "\t- id: two", "line 10: not YAML ("),
    "control character": ("Mend it.", "Mend\x00it.", "line 6: not YAML (special characters"),
    "two documents": ("comparison:", "---\ncomparison:", "line 7: not YAML ("),
    "alias": ("id: two", "id: &x two\n    good: *x", "line 11: YAML alias *x; write the text out"),
    "tag": (
        "Mend it.",
        "!!python/object/apply:os.system ['true']",
        "line 6: YAML tag tag:yaml.org,2002:python/object/apply:os.system; write plain text",
    ),
    "too deep": ("Mend it.", "[" * 5000, "line 6: nested more than 8 deep"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_complaint_names_file_line_and_field(case: str, write: Write) -> None:
    old, new, expected = BROKEN[case]
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    message = complaint(path)
    assert message.startswith(f"{path}: {expected}"), message
    assert "; line" not in message  # the one thing that is wrong, and no echo of it
    assert "\n" not in message


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        ("comparison: []", "line 7: comparison has no principles; write at least one"),
        ("comparison:", "line 7: comparison should be a list of principles, each begun with '-'"),
        ("comparison: kind", "line 7: comparison should be a list of principles, each begun with"),
        ("", "line 1: comparison is missing"),
    ],
)
def test_no_principles(comparison: str, expected: str, write: Write) -> None:
    head = GOOD[: GOOD.index("comparison:")]
    assert expected in complaint(write(head + comparison + "\n"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("# only a comment\n", "nothing"),
        ("- a\n- b\n", "a list"),
        ("be kind\n", "text"),
    ],
)
def test_not_a_mapping(text: str, found: str, write: Write) -> None:
    expected = f"expected fields ({FIELDS}), found {found}"
    assert f"line 1: {expected}" in complaint(write(text))


def test_all_that_is_wrong_is_said_at_once_and_in_order(write: Write) -> None:
    text = GOOD.replace("name: small", "nmae: small").replace("id: two", "id: one")
    message = complaint(write(text.replace("Mend it.", '""')))
    parts = [
        "line 1: name is missing",
        "line 1: nmae is not a field",
        "line 6: critique_revision[0].revision_request is empty",
        "line 10: comparison[1].id 'one' is taken on line 8; rename one",
    ]
    places = [message.index(part) for part in parts]
    assert places == sorted(places)
    assert message.count("line ") == 5  # the fifth is the other line of the repeated id


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(GOOD.replace("Mend it.", "Résumé").encode("latin-1"))
    assert complaint(path) == f"{path}: line 6: not UTF-8; save the file as UTF-8"


def test_too_large(write: Write) -> None:
    path = write(GOOD + "#" * MAX_BYTES)
    assert complaint(path) == f"{path}: larger than 1,000,000 bytes, too large for a constitution"


@pytest.mark.parametrize("name", ["harmlesness", "x" * 5000])
def test_missing_file_lists_the_shipped_names(name: str) -> None:
    expected = f"{name} is neither a file nor a shipped constitution; give the path of a YAML file"
    assert complaint(name) == f"{expected} or one of: {', '.join(SHIPPED)}"


def test_a_folder_is_not_a_constitution(tmp_path: Path) -> None:
    assert complaint(tmp_path).startswith(f"{tmp_path} is a folder; give the path of a YAML file")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable(write: Write) -> None:
    path = write(GOOD)
    path.chmod(0)
    assert complaint(path) == f"{path}: cannot be read (Permission denied)"


# --- round trip, hash, draw

NASTY = [
    "yes",
    "null",
    "~",
    "12",
    "2024-01-01",
    "- a list?",
    "a: b # c",
    "&x *x !t",
    "'single' \"double\"",
    "first\nsecond\n\nfourth",
    "naïve “quotes” 🚢",
    "{[(%@`|>",
    "a\tb\x85c\u2028d",
    "long " * 60 + "end",
]


@pytest.mark.parametrize("text", NASTY)
def test_round_trip_of_awkward_text(text: str, tmp_path: Path) -> None:
    constitution = Constitution(
        name=text,
        description=text,
        critique_revision=[CritiqueRevision(id=text, critique_request=text, revision_request=text)],
        comparison=[Principle(id=text, principle=text, question=text)],
    )
    save_constitution(constitution, tmp_path / "saved.yaml")
    assert load_constitution(tmp_path / "saved.yaml") == constitution


@pytest.mark.parametrize("name", SHIPPED)
def test_round_trip_of_the_shipped(name: str, tmp_path: Path) -> None:
    constitution = load_constitution(name)
    save_constitution(constitution, tmp_path / "saved.yaml")
    again = load_constitution(tmp_path / "saved.yaml")
    assert again == constitution
    assert constitution_sha256(again) == constitution_sha256(constitution)


def test_hash_sees_words_and_not_layout(write: Write) -> None:
    plain = constitution_sha256(load_constitution(write(GOOD)))
    assert re.fullmatch("[0-9a-f]{64}", plain)
    assert constitution_sha256(load_constitution(write("# hello\n" + GOOD))) == plain
    assert constitution_sha256(load_constitution(write(GOOD.replace("kinder", "better")))) != plain


def test_draw_is_independent_with_replacement_and_seeded() -> None:
    items = list(range(16))
    drawn = draw(items, 4000, seed=7)
    assert drawn == draw(items, 4000, seed=7)
    assert drawn != draw(items, 4000, seed=8)
    counts = [drawn.count(i) for i in items]
    assert min(counts) > 180 and max(counts) < 320  # 250 each, six standard deviations wide at most
    repeats = sum(a == b for a, b in zip(drawn, drawn[1:], strict=False))
    assert 180 < repeats < 320  # without replacement there would be none
    assert draw(["only"], 3, seed=0) == ["only"] * 3
    assert draw([], 0, seed=0) == []


def test_draw_from_nothing() -> None:
    with pytest.raises(InputError, match="cannot draw 2 from an empty list"):
        draw([], 2, seed=0)


def test_floor_one_does_not_load_torch() -> None:
    code = "import sys, cai_lite.paper; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])
