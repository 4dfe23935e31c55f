"""The append-only rows: torn lines, partial batches, order, and JSON that is whole or not there."""

import json
import os
from pathlib import Path

import pytest

from cai_lite.errors import InputError
from cai_lite.records import HelpfulAnswer, Pair, Rows, fill, read_json, write_json, write_text


def pair(name: str, a: str = "yes") -> Pair:
    return Pair(id=name, prompt=f"about {name}", a=a, b="no\nline — breaks: kept")


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    store = Rows(tmp_path / "deep" / "rows.jsonl", Pair)
    assert store.read() == []
    store.append([pair("1"), pair("2")])
    store.append([])
    store.append([pair("3")])
    assert store.read() == [pair("1"), pair("2"), pair("3")]
    assert store.path.read_bytes().count(b"\n") == 3


def test_a_text_with_exotic_line_breaks_stays_one_row(tmp_path: Path) -> None:
    store = Rows(tmp_path / "rows.jsonl", Pair)
    rows = [pair("1", a="next\x85line\u2028sep\u2029par\x0b\x0c\x1c\r\nend"), pair("2")]
    store.append(rows)
    assert store.read() == rows


@pytest.mark.parametrize("lost", [1, 2, 20])
def test_a_torn_last_line_is_not_read_and_is_cut_off_by_the_next_append(
    tmp_path: Path, lost: int
) -> None:
    store = Rows(tmp_path / "rows.jsonl", Pair)
    store.append([pair("1"), pair("2")])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-lost])
    assert store.read() == [pair("1")]
    store.append([pair("2")])
    assert store.path.read_bytes() == whole


def test_a_file_torn_in_its_first_line_is_empty(tmp_path: Path) -> None:
    store = Rows(tmp_path / "rows.jsonl", Pair)
    store.path.write_text('{"id": "1", "pro')
    assert store.read() == []
    store.append([pair("1")])
    assert store.read() == [pair("1")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("not json", "line 2: the line"),
        ('{"id":"2","prompt":"p","a":"x"}', "line 2: b: Field required"),
        ('{"id":"2","prompt":"p","a":"x","b":"y","c":1}', "line 2: c: Extra inputs"),
        ('{"id":"2","prompt":"p","a":5,"b":"y"}', "line 2: a: Input should be a valid string"),
        ("", "line 2: the line"),
    ],
)
def test_a_line_that_is_not_a_row_is_named(tmp_path: Path, line: str, told: str) -> None:
    store = Rows(tmp_path / "rows.jsonl", Pair)
    store.path.write_text(pair("1").model_dump_json() + "\n" + line + "\n")
    with pytest.raises(InputError) as error:
        store.read()
    assert str(store.path) in str(error.value) and told in str(error.value)
    assert "delete the file" in str(error.value)


class Maker:
    """Makes rows whose text tells the batch they were made in, and counts."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, batch) -> list[Pair]:  # type: ignore[no-untyped-def]
        self.batches.append(list(batch))
        return [pair(name, a=f"made with {' '.join(batch)}") for name in batch]


def test_fill_makes_rows_in_fixed_batches_and_in_order(tmp_path: Path) -> None:
    store, make, done = Rows(tmp_path / "rows.jsonl", Pair), Maker(), []
    rows = fill(store, list("dacbe"), str, make, 2, done.append)
    assert make.batches == [["d", "a"], ["c", "b"], ["e"]] and done == [2, 2, 1]
    assert [row.id for row in rows] == list("dacbe") and store.read() == rows


def test_a_partial_batch_is_made_again_as_a_whole_and_rows_are_equal(tmp_path: Path) -> None:
    undisturbed = fill(Rows(tmp_path / "1.jsonl", Pair), list("abcdefg"), str, Maker(), 3)
    store = Rows(tmp_path / "2.jsonl", Pair)
    store.append(undisturbed[:4])
    with store.path.open("ab") as file:
        file.write(undisturbed[4].model_dump_json().encode()[:-9])
    make = Maker()
    assert fill(store, list("abcdefg"), str, make, 3) == undisturbed
    assert make.batches == [["d", "e", "f"], ["g"]]
    assert store.path.read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    assert fill(store, list("abcdefg"), str, make, 3) == undisturbed and len(make.batches) == 2


def test_fill_returns_only_the_work_asked_for(tmp_path: Path) -> None:
    store = Rows(tmp_path / "rows.jsonl", Pair)
    store.append([pair("other")])
    assert [row.id for row in fill(store, ["b", "a"], str, Maker(), 4)] == ["b", "a"]
    assert [row.id for row in store.read()] == ["other", "b", "a"]


def test_rows_are_frozen_and_know_their_fields() -> None:
    with pytest.raises(ValueError):
        pair("1").a = "other"  # type: ignore[misc]
    with pytest.raises(ValueError):
        HelpfulAnswer(id="1", prompt="p", response="r", extra="x")  # type: ignore[call-arg]


def test_write_json_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made" / "it.json"
    write_json(path, {"n": 1, "text": "é"})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"n": 2})
    assert read_json(path) == {"n": 1, "text": "é"}
    monkeypatch.undo()
    write_json(path, {"n": 3})
    assert read_json(path) == {"n": 3}
    assert [p.name for p in path.parent.iterdir()] == ["it.json"]


def test_a_write_that_fails_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_read_json_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there; run the stage"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(InputError, match="half.json is not JSON"):
        read_json(tmp_path / "half.json")
