"""Labelling is blind, each choice lands on its own answer and in the file, and can be undone."""

import math
from pathlib import Path

import pytest

from cai_lite.errors import InputError
from cai_lite.records import Comparison, Pair, Rows
from cai_lite.teaching import labelling
from cai_lite.teaching.labelling import agreement_table, choices_in, kappa, label_pairs, side_of

PAIRS = [Pair(id=str(i), prompt=f"Q{i}?", a=f"first {i}", b=f"second {i}") for i in range(6)]
LABELS = {"judge <i>": {pair.id: 0.87 for pair in PAIRS}}
LEFT, NEITHER, RIGHT, BACK = range(4)


class Hands:
    """A reader's eyes and hands on the widget."""

    def __init__(self, pairs=PAIRS, choices=None, file=None, labels=LABELS):
        self.choices = {} if choices is None else choices
        self.page, buttons, self.keys = label_pairs(pairs, labels, self.choices, file).children
        self.buttons = buttons.children
        self.shown = buttons.layout

    def click(self, button: int) -> None:
        self.buttons[button].click()

    def type(self, text: str) -> None:
        self.keys.value = text

    def a_is_left(self) -> bool:
        return self.page.value.index("first") < self.page.value.index("second")

    def prefer_a(self) -> None:
        self.click(LEFT if self.a_is_left() else RIGHT)


def stored(file: Path) -> list[tuple[str, float]]:
    return [(row.id, row.p_a) for row in Rows(file, Comparison).read()]


def test_nothing_but_prompt_and_answers_is_seen_before_the_end():
    labelled = [Comparison(**pair.model_dump(), p_a=0.87, method="contrast", principles=["kind"])
                for pair in PAIRS]  # fmt: skip
    hands = Hands(labelled)
    for number, pair in enumerate(PAIRS, 1):
        page = hands.page.value
        assert f"pair {number} of 6" in page and pair.a in page and pair.b in page
        for hint in ("0.87", "judge", "contrast", "kind", ">A<", ">B<"):
            assert hint not in page
        hands.prefer_a()
    assert "judge &lt;i&gt;" in hands.page.value and "1.00 [0.61, 1.00]" in hands.page.value
    assert hands.shown.display == "none"


def test_the_side_gives_nothing_away_and_choices_are_of_the_pairs_own_answers():
    hands, lefts = Hands(), []
    for _ in PAIRS:
        lefts.append(hands.a_is_left())
        hands.click(LEFT)
    assert set(lefts) == {True, False}
    assert list(hands.choices.values()) == ["A" if left else "B" for left in lefts]
    sides = [
        labelling._left_and_right(Pair(id=f"rt-{i}", prompt="", a="", b="")) for i in range(400)
    ]
    assert 160 < sides.count(("A", "B")) < 240


def test_keys_do_what_buttons_do_and_the_box_is_emptied():
    clicked, typed = Hands(), Hands()
    for button, key in [(LEFT, "1"), (RIGHT, "2"), (NEITHER, "0"), (BACK, "b"), (RIGHT, "12")]:
        clicked.click(button)
        typed.type(key)
        assert typed.keys.value == ""
        assert typed.choices == clicked.choices and typed.page.value == clicked.page.value
    for key in ("x", " ", "?", "back "):
        typed.type(key)
        assert typed.keys.value == "" and typed.choices == clicked.choices
    typed.type("B")
    assert list(typed.choices) == ["0", "1"]


def test_the_last_page_shows_where_somebody_differs():
    pairs = PAIRS[:3]
    labels = {"judge": {"0": 0.91, "1": 0.12, "2": 0.5}, "other": {"0": "A", "1": "A"}}
    hands = Hands(pairs, labels=labels)
    for _ in pairs:
        hands.prefer_a()
    above, below = hands.page.value.split("where they differ")
    assert "0.50" in above and "Q" not in above
    assert "Q1?" in below and "0.12" in below  # A by you and the other, B by the judge
    assert "Q0?" not in below and "Q2?" not in below
    assert "nowhere" in Hands(pairs[:1], {"0": "?"}, labels=labels).page.value


def test_nothing_changes_once_labels_are_seen():
    hands = Hands(PAIRS[:1])
    hands.prefer_a()
    for button in (LEFT, RIGHT, BACK):
        hands.click(button)
    hands.type("b")
    assert hands.choices == {"0": "A"}


def test_back_without_a_choice_does_nothing_and_leaves_choices_of_other_pairs():
    hands = Hands(choices={"elsewhere": "A"})
    hands.click(BACK)
    assert hands.choices == {"elsewhere": "A"}


def test_choices_already_made_are_not_asked_again():
    hands = Hands(choices={"0": "B", "1": "?"})
    assert "pair 3 of 6" in hands.page.value and "Q2?" in hands.page.value


def test_no_pairs_are_at_the_end_at_once():
    assert "there is no pair that both decided" in Hands([]).page.value


def test_rows_in_the_file_train_a_preference_model(tmp_path):
    file = tmp_path / "mine" / "labels.jsonl"
    hands = Hands(PAIRS[:4], file=str(file))
    hands.prefer_a()
    assert stored(file) == [("0", 1.0)]  # at once
    hands.click(NEITHER)
    hands.click(RIGHT if hands.a_is_left() else LEFT)
    rows = Rows(file, Comparison).read()
    assert [row.p_a for row in rows] == [1.0, 0.5, 0.0]
    assert [(row.prompt, row.a, row.b) for row in rows] == [
        (pair.prompt, pair.a, pair.b) for pair in PAIRS[:3]
    ]
    assert {row.method for row in rows} == {"person"}
    assert not rows[0].principles and not rows[0].scores
    assert choices_in(file) == hands.choices == {"0": "A", "1": "?", "2": "B"}


def test_back_leaves_no_row_of_the_choice(tmp_path):
    file = tmp_path / "labels.jsonl"
    hands = Hands(file=file)
    hands.prefer_a()
    hands.prefer_a()
    hands.click(BACK)
    assert stored(file) == [("0", 1.0)] and "Q1?" in hands.page.value
    hands.click(NEITHER)
    assert stored(file) == [("0", 1.0), ("1", 0.5)]


def test_a_file_is_gone_on_with(tmp_path):
    file = tmp_path / "labels.jsonl"
    first = Hands(file=file)
    first.prefer_a()
    first.click(NEITHER)
    again = Hands(file=file)
    assert again.choices == {"0": "A", "1": "?"} and "pair 3 of 6" in again.page.value
    again.type("b")
    assert stored(file) == [("0", 1.0)]


def test_a_torn_last_line_costs_one_choice(tmp_path):
    file = tmp_path / "labels.jsonl"
    first = Hands(file=file)
    first.prefer_a()
    first.prefer_a()
    file.write_bytes(file.read_bytes()[:-9])
    again = Hands(file=file)
    assert again.choices == {"0": "A"} and "Q1?" in again.page.value
    again.click(NEITHER)
    assert stored(file) == [("0", 1.0), ("1", 0.5)]


def test_one_id_never_stands_twice_in_the_file(tmp_path):
    file = tmp_path / "labels.jsonl"
    one, other = Hands(file=file), Hands(file=file)  # the cell was run twice
    one.prefer_a()
    other.click(NEITHER)
    assert stored(file) == [("0", 0.5)]


def test_choices_made_before_there_was_a_file_come_into_it(tmp_path):
    file = tmp_path / "labels.jsonl"
    Hands(PAIRS[1:2], {"1": "B"}, file)
    hands = Hands(choices={"0": "A", "1": "A"}, file=file)
    assert stored(file) == [("1", 0.0), ("0", 1.0)]
    assert hands.choices == {"0": "A", "1": "B"}  # the file stands


def test_labels_of_a_machine_or_of_other_texts_are_refused(tmp_path):
    file = tmp_path / "labels.jsonl"
    Hands(PAIRS[:1], file=file).prefer_a()
    with pytest.raises(InputError, match="pair 0 was labelled with other texts.*another file"):
        Hands([PAIRS[0].model_copy(update={"a": "third"})], file=file)
    machine = Comparison(**PAIRS[1].model_dump(), p_a=0.4, method="contrast", principles=[])
    Rows(file, Comparison).append([machine])
    with pytest.raises(InputError, match="pair 1 was labelled by 'contrast'.*another file"):
        Hands(file=file)
    assert choices_in(file) == {"0": "A", "1": "B"}


def test_no_file_holds_no_choices(tmp_path):
    assert choices_in(tmp_path / "none.jsonl") == {}


def test_what_models_say_is_escaped():
    evil = "<script>alert(1)</script>"
    pair = Pair(id=evil, prompt=evil, a=evil, b=evil)
    hands = Hands([pair], labels={evil: {evil: evil}, "ai": {evil: 0.0}})
    assert "<script" not in hands.page.value and "&lt;script&gt;" in hands.page.value
    hands.click(LEFT)
    assert "<script" not in hands.page.value
    table = labelling.labels_table([pair], {evil: {evil: evil}}).data
    assert "<script" not in table and table.count("&lt;script&gt;") == 5


@pytest.mark.parametrize(
    "mine, theirs", [("AAAAAABB", "AAAABAAB"), ("AABB", "BBAA"), ("AAAA", "ABAB"), ("AA", "BB")]
)
def test_kappa_is_sklearns(mine, theirs):
    from sklearn.metrics import cohen_kappa_score

    both = list(zip(mine, theirs, strict=True))
    assert kappa(both) == pytest.approx(cohen_kappa_score(list(mine), list(theirs)))


def test_kappa_that_cannot_be_had_is_a_dash_that_says_why():
    assert math.isnan(kappa([("A", "A")])) and math.isnan(kappa([]))
    same = agreement_table({"1": "A", "2": "A"}, {"ai": {"1": 0.9, "2": "A"}}).data
    assert '<span title="no kappa: both always say the same">—</span>' in same
    assert "nan" not in same and "1.00 [0.34, 1.00]" in same
    none = agreement_table({"1": "?"}, {"ai": {"1": 0.9}}).data
    assert "nan" not in none and ">0</td>" in none


def test_agreement_counts_what_both_decided():
    said = {"1": 0.9, "2": 0.5, "3": 0.1, "4": 0.7}
    table = agreement_table({"1": "A", "2": "A", "3": "A", "4": "?"}, {"ai": said}).data
    assert ">2</td>" in table and "0.50 [0.09, 0.91]" in table and ">0.00</td>" in table


@pytest.mark.parametrize(
    "label, side",
    [(0.5, "?"), (0.51, "A"), (0.2, "B"), ("B", "B"), ("x", "?"), (None, "?"), (math.nan, "?")],
)
def test_side_of_a_label(label, side):
    assert side_of(label) == side
