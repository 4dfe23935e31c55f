"""The editor says what is wrong while one types, and writes nothing that is not valid."""

from pathlib import Path

import pytest
from conftest import SMALL_CONSTITUTION as TEXT

from cai_lite.constitution import load_constitution, shipped_constitutions
from cai_lite.files import shipped
from cai_lite.teaching.constitution_editor import constitution_editor, examined


class Hands:
    """A reader's eyes and hands on the editor."""

    def __init__(self, text: str, file: Path) -> None:
        self.box, self.state, foot = constitution_editor(text, file).children
        self.button, self.saved = foot.children

    def type(self, text: str) -> None:
        self.box.value = text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "mine.yaml"


def test_it_is_examined_at_every_change(file: Path) -> None:
    hands = Hands(TEXT, file)
    assert hands.state.value.startswith("✓ valid") and "small" in hands.state.value
    hands.type(TEXT.replace("principle:", "principal:"))
    assert hands.state.value.startswith("✗ your text: line 8: comparison[0].principle is missing")
    assert "line 9: comparison[0].principal is not a field" in hands.state.value
    assert hands.button.disabled
    hands.type(TEXT.replace("name: small", "name: [small"))
    assert "line 2: not YAML" in hands.state.value
    hands.type(TEXT)
    assert hands.state.value.startswith("✓") and not hands.button.disabled


def test_what_is_saved_is_read_back_and_comments_stay(file: Path) -> None:
    hands = Hands(TEXT, file)
    hands.type("# mine\n" + TEXT.replace("small", "mine"))
    assert not file.exists()
    hands.button.click()
    assert hands.saved.value == f"saved in {file}"
    assert file.read_text(encoding="utf-8").startswith("# mine\n")
    assert load_constitution(file).name == "mine"
    assert list(file.parent.iterdir()) == [file]  # no half-written neighbour
    hands.type(TEXT)
    assert hands.saved.value == ""  # what is in the box is not what was saved


def test_nothing_invalid_is_ever_written(file: Path) -> None:
    hands = Hands(TEXT, file)
    hands.button.click()
    hands.type("name: only")
    hands.button.click()  # a click may come before the button is greyed out
    assert hands.saved.value.startswith("not saved: your text: line 1: comparison is missing")
    assert file.read_text(encoding="utf-8") == TEXT


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    hands = Hands(TEXT, tmp_path / "file" / "mine.yaml")
    hands.button.click()
    assert "not saved: " in hands.saved.value and "choose another file" in hands.saved.value


def test_what_is_typed_is_escaped(file: Path) -> None:
    evil = "<script>alert(1)</script>"
    hands = Hands(TEXT.replace("small", evil), file)
    assert "<script" not in hands.state.value and "&lt;script" in hands.state.value
    hands.type(f'{TEXT}"{evil}": 1\n')
    assert "<script" not in hands.state.value and "&lt;script" in hands.state.value


@pytest.mark.parametrize("name", shipped_constitutions())
def test_the_shipped_texts_are_valid(name: str) -> None:
    text = shipped("constitutions", f"{name}.yaml").read_text(encoding="utf-8")
    assert examined(text)[0]
