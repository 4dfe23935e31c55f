"""The reader of the paper's released files, on made-up files and on the real ones where present."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cai_lite import paper
from cai_lite.constitution import load_constitution, save_constitution
from cai_lite.errors import InputError
from cai_lite.paper import (
    ChainOfThoughtExample,
    HHHRow,
    fetch_paper,
    import_paper_constitution,
    load_hhh,
    paper_few_shots,
    paper_file,
    paper_folder,
    without_few_shots,
)
from cai_lite.texts import mean_length, share_with

PAPER = Path(os.environ.get("CAI_LITE_PAPER") or Path(__file__).parents[2] / "shared" / "paper")
with_paper = pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's files are not here")

# --- the real files


@with_paper
def test_pinned_hashes_are_those_of_the_real_files() -> None:
    for name, expected in paper.PAPER_FILES.items():
        if expected:
            assert hashlib.sha256((PAPER / name).read_bytes()).hexdigest() == expected, name
    assert sum(bool(h) for h in paper.PAPER_FILES.values()) == 6


@with_paper
def test_constitution_of_the_paper(tmp_path: Path) -> None:
    constitution = import_paper_constitution(PAPER)
    assert [p.id for p in constitution.critique_revision] == [f"harmful{i}" for i in range(16)]
    assert [p.id for p in constitution.comparison] == [f"comparison-{i}" for i in range(16)]
    text = constitution.model_dump_json()
    for scaffolding in ("CritiqueRequest", "Critique:", "RevisionRequest", "Revision:", "Options"):
        assert scaffolding not in text
    assert all(p.principle[-1] in ".?" for p in constitution.comparison)
    assert import_paper_constitution(PAPER / "prompts") == constitution
    save_constitution(constitution, tmp_path / "paper.yaml")
    assert load_constitution(tmp_path / "paper.yaml") == constitution


@with_paper
def test_critique_dialogues_join() -> None:
    dialogues = paper_few_shots(PAPER).critique_revision
    raw = json.loads((PAPER / "prompts/CritiqueRevisionFewShotPrompts.json").read_text())
    assert len(dialogues) == 5
    rests = [r.removeprefix(d.text) for r, d in zip(raw, dialogues, strict=True)]
    assert rests == ["\n\nHuman:", "\n\nHuman:", "\n\nHuman:", "", "\n\nHuman:"]
    assert all(d.text.startswith("\n\nHuman: ") for d in dialogues)
    same = [d.conversation.endswith(f"Assistant: {d.revision}") for d in dialogues]
    assert same == [False, False, True, True, False]


@with_paper
def test_comparison_few_shots() -> None:
    examples = paper_few_shots(PAPER).comparison
    assert len(examples) == 5
    for example in examples:
        assert example.conversation.startswith("Human: ")
        assert "Assistant:" not in example.conversation
        assert example.chosen != example.rejected


@with_paper
def test_chain_of_thought_few_shots() -> None:
    examples = paper_few_shots(PAPER).chain_of_thought
    assert [e.correct for e in examples] == [1, 1, 0, 1, 0, 1]
    for example in examples:
        assert len(example.options) == 2
        assert example.conversation.startswith("Human: ")
        text = example.text("BE KIND {}")
        assert text.startswith("\n\nHuman: ") and text.endswith(f"({'AB'[example.correct]})")
        assert text.count("BE KIND {}") == 1
        assert "step by step" not in example.reasoning and "So the answer" not in example.reasoning


@with_paper
def test_hhh_evaluation() -> None:
    rows = load_hhh(PAPER / "evals" / "438HHHEvaluations.jsonl")
    assert len(rows) == 438
    assert Counter(row.correct for row in rows) == {0: 228, 1: 210}
    assert {row.n_options for row in rows} == {2}
    assert len({row.question for row in rows}) == 1
    longer = 0.0
    for row in rows:
        right, wrong = row.options[row.correct], row.options[1 - row.correct]
        assert row.text_correct == f"\n\n{row.conversation}\n\nAssistant: {right}"
        assert row.text_incorrect == f"\n\n{row.conversation}\n\nAssistant: {wrong}"
        longer += len(right) > len(wrong)
    assert longer / 438 == pytest.approx(0.562, abs=0.005)


@with_paper
def test_chain_of_thought_examples_are_in_the_evaluation() -> None:
    rows = load_hhh(PAPER / "evals" / "438HHHEvaluations.jsonl")
    examples = paper_few_shots(PAPER).chain_of_thought
    assert len(without_few_shots(rows, examples)) == 418
    for example in examples:
        assert len(without_few_shots(rows, [example])) < 438


# --- rows of all three forms

OPTIONS = "ABCDEFGHI"


def _row(**changed: object) -> dict[str, object]:
    prompt = (
        "\n\nConsider this talk:\n\nHuman: Hi (A) or (B)?\n\nAssistant: Yes.\n\nHuman: Why?\n\n\n"
        "Which is nicer? Options:\n (A) [[[Because.\n\n (B) is no answer.]]]\n (B) [[[]]]\n\n"
        "The answer is:"
    )
    return {"prompt": prompt, "corrects": [" (B)"], "incorrects": [" (A)"]} | changed


def _write_rows(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_row_with_brackets(tmp_path: Path) -> None:
    (row,) = load_hhh(_write_rows(tmp_path / "a.jsonl", _row()))
    assert row.conversation == "Human: Hi (A) or (B)?\n\nAssistant: Yes.\n\nHuman: Why?"
    assert row.question == "Which is nicer?"
    assert row.options == ["Because.\n\n (B) is no answer.", ""]
    assert (row.correct, row.text_correct) == (1, None)


def test_row_with_nine_plain_options(tmp_path: Path) -> None:
    listed = "".join(f"\n ({label}) Kind {label} of harm" for label in OPTIONS)
    raw = _row(
        prompt="Here is a talk:\n\nHuman: How?\n\nAssistant: Like this:\n (A) first\n\n"
        f"In which way was it bad? Options:{listed}\nThe answer is:",
        corrects=[" (D)"],
        incorrects=[f" ({label})" for label in OPTIONS if label != "D"],
    )
    (row,) = load_hhh(_write_rows(tmp_path / "a.jsonl", raw))
    assert row.n_options == 9
    assert (row.correct, row.options[row.correct]) == (3, "Kind D of harm")
    assert row.conversation == "Human: How?\n\nAssistant: Like this:\n (A) first"
    assert row.question == "In which way was it bad?"


def test_without_few_shots_ignores_spacing() -> None:
    row = HHHRow.model_validate(_row())
    example = ChainOfThoughtExample(
        conversation="Human:  Hi (A) or (B)?", options=[], reasoning="r", correct=0, template="t"
    )
    other = example.model_copy(update={"conversation": "Human: Bye"})
    assert without_few_shots([row], [other]) == [row]
    assert without_few_shots([row], [other, example]) == []
    assert without_few_shots([row], []) == [row]


def _said(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_hhh(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"corrects": []}, "corrects: List should have at least 1 item"),
        ({"corrects": [" (A)", " (B)"]}, "corrects: List should have at most 1 item"),
        ({"incorrects": "A"}, "incorrects: Input should be a valid list"),
        ({"prompt": 3}, "prompt: Input should be a valid string"),
        ({"prompt": "Human: hi"}, "prompt has no options such as ' (A) …'"),
        ({"corrects": [" (C)"]}, "prompt has options ['A', 'B'], corrects and incorrects name"),
    ],
)
def test_row_complaints(changed: dict[str, object], expected: str, tmp_path: Path) -> None:
    path = _write_rows(tmp_path / "a.jsonl", _row(), _row(**changed))
    assert _said(path).startswith(f"{path}: line 2: {expected}")


def test_row_complaints_come_together(tmp_path: Path) -> None:
    path = _write_rows(tmp_path / "a.jsonl", {"prompt": "x"})
    assert _said(path) == f"{path}: line 1: corrects: Field required; incorrects: Field required"


def test_row_file_complaints(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert f"{path}: cannot be read (No such file" in _said(path)
    path.write_text("\n\n{not json\n")
    assert _said(path).startswith(f"{path}: line 3: not JSON (")
    path.write_text("\n")
    assert _said(path) == f"{path}: no rows; expected one JSON object a line"
    path.write_bytes(b'{"prompt": "\xff"}')
    assert _said(path) == f"{path}: byte 12 is not UTF-8; fetch it again"


# --- prompt files that are not as released


def _prompts(folder: Path, **files: object) -> Path:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


PAIR = {"prompt": ["\n\nCritiqueRequest: Q?\n\nCritique:"], "edit_request": "RevisionRequest: R."}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("[", "line 1: not JSON ("),
        ([], "Input should be a valid dictionary"),
        ({}, "Dictionary should have at least 1 item"),
        ({"k": {"prompt": ["x"]}}, "k.edit_request: Field required"),
        ({"k": PAIR}, "k.edit_request: expected 'RevisionRequest: … Revision:', found"),
        ({"k": PAIR | {"prompt": ["CritiqueRequest: Critique:"]}}, "k.prompt: expected 'CritiqueR"),
    ],
)
def test_instruction_complaints(pairs: object, expected: str, tmp_path: Path) -> None:
    _prompts(tmp_path, CritiqueRevisionInstructions=pairs, RLMadisonInstructions=["\nP. Options:"])
    with pytest.raises(InputError) as caught:
        import_paper_constitution(tmp_path)
    path = tmp_path / "CritiqueRevisionInstructions.json"
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_principle_without_options(tmp_path: Path) -> None:
    pairs = {"k": PAIR | {"edit_request": "RevisionRequest: R.\n\nRevision:"}}
    _prompts(tmp_path, CritiqueRevisionInstructions=pairs, RLMadisonInstructions=["Be kind."])
    with pytest.raises(InputError, match=r"RLMadisonInstructions.json: \[0\]: expected '… Options"):
        import_paper_constitution(tmp_path)


def _few_shots(folder: Path, dialogue: str, chain: str) -> Path:
    return _prompts(
        folder,
        CritiqueRevisionFewShotPrompts=[dialogue],
        RLMadisonFewShotPrompts=[
            {"prompt": "\n\nHuman: q\n\nAssistant:", "corrects": ["a"], "incorrects": ["b"]}
        ],
        RLMadisonPrecogFewShotPrompts=[{"prompt": chain}],
    )


DIALOGUE = (
    "\n\nHuman: q\n\nAssistant: a\n\nCritiqueRequest: c?\n\nCritique: c.\n\n"
    "RevisionRequest: r!\n\nRevision: r."
)
CHAIN = (
    "Human: Consider this:\n\nH: q\n\nA: a\n\nH: q\n\n{}\n (A) [[[x]]]\n (B) [[[y]]]\n\n"
    "Assistant: Let's think step by step: z\n\nHuman:\nSo the answer is: (B)"
)


def test_few_shots_are_mended(tmp_path: Path) -> None:
    shots = paper_few_shots(_few_shots(tmp_path, DIALOGUE + "\n\nHuman:", CHAIN))
    assert shots.critique_revision[0].text == DIALOGUE
    assert shots.comparison[0].conversation == "Human: q"
    (chain,) = shots.chain_of_thought
    assert chain.conversation == "Human: q\n\nAssistant: a\n\nHuman: q"
    assert (chain.options, chain.correct, chain.reasoning) == (["x", "y"], 1, "z")
    assert chain.text("P") == "\n\n" + CHAIN.replace("{}", "P")


@pytest.mark.parametrize(
    ("dialogue", "chain", "expected"),
    [
        ("Human: q", CHAIN, r"\[0\]: not in the released layout, begins 'Human: q'"),
        (DIALOGUE, "Human: q", r"\[0\].prompt: not in the released layout, begins 'Human: q'"),
        (DIALOGUE, CHAIN[:-2] + "C)", r"\[0\].prompt: the answer is C, options are \['A', 'B'\]"),
    ],
)
def test_few_shot_complaints(dialogue: str, chain: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        paper_few_shots(_few_shots(tmp_path, dialogue, chain))


def test_missing_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        import_paper_constitution(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no CritiqueRevisionInstructions.json here")
    assert "CAI_LITE_PAPER" in message


# --- where the files are


def test_paper_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAI_LITE_PAPER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paper_folder() is None
    file = tmp_path / "cai-lite" / "paper" / "evals" / "438HHHEvaluations.jsonl"
    file.parent.mkdir(parents=True)
    assert paper_folder() is None
    file.write_text("{}")
    assert paper_folder() == tmp_path / "cai-lite" / "paper"
    assert paper_file(tmp_path / "cai-lite" / "paper", "438HHHEvaluations.jsonl") == file
    monkeypatch.setenv("CAI_LITE_PAPER", str(tmp_path))
    assert paper_folder() == tmp_path
    monkeypatch.setenv("CAI_LITE_PAPER", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="CAI_LITE_PAPER=.*gone is not a folder; correct or unset"):
        paper_folder()


def test_cache_without_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert paper.paper_cache() == tmp_path / ".cache" / "cai-lite" / "paper"


# --- downloading, from a real server

PINNED = b'{"a": 1}'
UNPINNED = b'{"prompt": "x"}\n'
FILES = {"prompts/a.json": hashlib.sha256(PINNED).hexdigest(), "evals/b.jsonl": None}


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies = {"/prompts/a.json": PINNED, "/evals/b.jsonl": UNPINNED}
        self.cut_off: set[str] = set()  # paths of which only half is sent
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.bodies.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = self.path in self.server.cut_off
        self.wfile.write(body[: len(body) // 2] if half else body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(paper, "PAPER_FILES", FILES)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _fails(folder: Path, url: str) -> str:
    with pytest.raises(InputError) as caught:
        fetch_paper(folder, url)
    message = str(caught.value)
    assert f"put the files into {folder} by hand or set CAI_LITE_PAPER=FOLDER" in message
    return message


def _kept(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_fetch_downloads_what_is_missing(server: _Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "paper"
    assert fetch_paper(folder, server.url) == [folder / name for name in FILES]
    assert (folder / "prompts/a.json").read_bytes() == PINNED
    assert (folder / "evals/b.jsonl").read_bytes() == UNPINNED
    assert _kept(folder) == ["evals/b.jsonl", "prompts/a.json"]
    server.asked.clear()
    assert fetch_paper(folder, server.url) == []
    assert server.asked == []
    (folder / "prompts/a.json").unlink()
    assert fetch_paper(folder, server.url.rstrip("/")) == [folder / "prompts/a.json"]
    assert server.asked == ["/prompts/a.json"]


def test_fetch_refuses_a_changed_file(server: _Server, tmp_path: Path) -> None:
    server.bodies["/prompts/a.json"] = b'{"a": 2}'
    message = _fails(tmp_path, server.url)
    assert f"{server.url}prompts/a.json is not the released file (its SHA-256 is " in message
    assert f"expected {FILES['prompts/a.json']}" in message
    assert _kept(tmp_path) == []


def test_fetch_refuses_a_web_page(server: _Server, tmp_path: Path) -> None:
    server.bodies["/evals/b.jsonl"] = b"<html>please log in</html>"
    assert "expected JSON lines, it begins with b'<html>please log in<'" in _fails(
        tmp_path, server.url
    )
    assert _kept(tmp_path) == ["prompts/a.json"]


@pytest.mark.parametrize("name", FILES)
def test_fetch_refuses_half_a_file(name: str, server: _Server, tmp_path: Path) -> None:
    server.cut_off = {f"/{name}"}
    message = _fails(tmp_path, server.url)
    assert message.startswith(f"could not download {server.url}{name} (IncompleteRead(")
    assert name not in _kept(tmp_path)


def test_fetch_not_found(server: _Server, tmp_path: Path) -> None:
    del server.bodies["/evals/b.jsonl"]
    message = _fails(tmp_path, server.url)
    assert message.startswith(f"could not download {server.url}evals/b.jsonl (HTTP Error 404")
    assert _kept(tmp_path) == ["prompts/a.json"]


def test_fetch_without_a_network(server: _Server, tmp_path: Path) -> None:
    closed = _Server()
    closed.server_close()
    message = _fails(tmp_path, closed.url)
    assert message.startswith(f"could not download {closed.url}prompts/a.json (")
    assert _kept(tmp_path) == []


def test_fetch_into_a_place_that_cannot_be_written(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="a.json: cannot be written"):
        fetch_paper(tmp_path, server.url)


# ---- the samples of the paper's models


def samples(path: Path, *prompts: list[str]) -> Path:
    """A file in the form of the released samples."""
    rows = [
        {
            "rl_prompt": "\n\nHuman: Why?\n\nAssistant:",
            "comparison_dataset": "PALMS",
            "sampled_answers": [
                {"sampled_string": text, "pm_scores": [{"pm_score": 1.5}]} for text in texts
            ],
        }
        for texts in prompts
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_samples_lose_the_mark_they_stopped_at(tmp_path: Path) -> None:
    file = samples(
        tmp_path / "PALMS_RLMADISON.jsonl",
        [" I'm here to help.\n\nHuman:", " You are valid.<EOT>"],
        [" Cut off in the", "He said: Human: no", " No second break\nHuman:"],
    )
    assert paper.load_samples(file) == [
        "I'm here to help.", "You are valid.", "Cut off in the", "He said: Human: no",
        "No second break",
    ]  # fmt: skip
    folder = tmp_path / "samples"
    folder.mkdir()
    file.rename(folder / file.name)
    assert paper.paper_file(tmp_path, file.name) == folder / file.name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no rows"),
        ('{"rl_prompt": "x"}', "line 1: sampled_answers: Field required"),
        ('{"rl_prompt": "x", "sampled_answers": []}', "line 1: sampled_answers: "),
        ("[", "line 1: not JSON"),
    ],
)
def test_sample_complaints(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        paper.load_samples(file)


# Shares of answers with a phrase in percent, and mean characters, of the released PALMS samples.
FIGURES = {
    "helpful RLHF": {"sorry": 0, "i'm here to": 0, "you are valid": 0, "length": 485},
    "HH RLHF": {"sorry": 29.1, "you are valid": 0, "length": 308},
    "RL-CAI": {"sorry": 4.0, "i'm here to": 88.7, "you are valid": 17.6, "length": 575},
    "RL-CAI with CoT": {"sorry": 0.9, "i'm here to": 12.5, "you are valid": 0, "length": 588},
}


@pytest.mark.parametrize("model", FIGURES)
def test_the_released_samples_have_the_boilerplate_that_is_known(model: str) -> None:
    if not paper._find(PAPER, paper.SAMPLES[model]):
        pytest.skip("the released samples are not on this machine: cai-lite fetch-paper")
    said = paper.load_samples(paper.paper_file(PAPER, paper.SAMPLES[model]))
    assert len(said) == 680
    for phrase, expected in FIGURES[model].items():
        if phrase == "length":
            assert round(mean_length(said)) == expected
        else:
            assert round(100 * share_with(said, phrase), 1) == expected, phrase
