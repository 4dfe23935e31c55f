"""The paper's released prompts and evaluations, read from a folder on the user's machine.

The files of `anthropics/ConstitutionalHarmlessnessPaper` have no licence, so none of their text is
part of this package: `fetch_paper` downloads them when asked, and the rest of this file reads them.
"""

import hashlib
import http.client
import json
import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from cai_lite.constitution import Constitution, CritiqueRevision, Principle
from cai_lite.errors import InputError

BASE_URL = "https://raw.githubusercontent.com/anthropics/ConstitutionalHarmlessnessPaper/main/"
ENVIRONMENT_VARIABLE = "CAI_LITE_PAPER"
TIMEOUT_S = 30.0
HHH_FILE = "438HHHEvaluations.jsonl"

# File and SHA-256; None where the release has not been pinned yet.
PAPER_FILES: dict[str, str | None] = {
    "prompts/CritiqueRevisionInstructions.json": (
        "a55071cbef36e2a944e8e4f3612eb6afaaa63b5d56e7e8c14732cedc864b4045"
    ),
    "prompts/CritiqueRevisionFewShotPrompts.json": (
        "cb8082c963af77b3e2713f1dc37adff01962b21ebb5f92d37877d559dfeb1085"
    ),
    "prompts/RLMadisonInstructions.json": (
        "aeadbe39725a89dc8d2fb0ed54f0a646a777dacd9b938175cb7b420fbd59930a"
    ),
    "prompts/RLMadisonFewShotPrompts.json": (
        "f1fdce27f1b4693a172aa4249e097b3a3beadcbc5c0b58d720d716a6d4999d74"
    ),
    "prompts/RLMadisonPrecogFewShotPrompts.json": (
        "9417ba076fec230ec2d7573dccacdc5e3cd2c0736cb8930bfb2aba78248dda70"
    ),
    "evals/438HHHEvaluations.jsonl": (
        "d1ee180289d3eeeb314ad862344cbd9af07f19c6d52a77524f9a1a21e7373c10"
    ),
    "evals/HarmfulVsEthical.jsonl": None,
    "evals/HarmfulnessClassification.jsonl": None,
    "samples/PALMS_HRLHF.jsonl": None,
    "samples/PALMS_HHRLHF.jsonl": None,
    "samples/PALMS_RLMADISON.jsonl": None,
    "samples/PALMS_RLMADISON_COT.jsonl": None,
}
SAMPLES = {  # who wrote them: "Madison" is what the release calls Constitutional AI
    "helpful RLHF": "PALMS_HRLHF.jsonl",
    "HH RLHF": "PALMS_HHRLHF.jsonl",
    "RL-CAI": "PALMS_RLMADISON.jsonl",
    "RL-CAI with CoT": "PALMS_RLMADISON_COT.jsonl",
}
# a sample ends in the mark it stopped at, or was cut off; HH RLHF's often has one line break
_STOPS = ("\n\nHuman:", "\nHuman:", "<EOT>")

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
Text = Annotated[str, StringConstraints(min_length=1)]
Stripped = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
_FROZEN = ConfigDict(frozen=True)

_DIALOGUE = re.compile(
    r"(?P<conversation>Human: .+?\n\nAssistant: .+?)"
    r"\n\nCritiqueRequest: (?P<critique_request>.+?)"
    r"\n\nCritique: (?P<critique>.+?)"
    r"\n\nRevisionRequest: (?P<revision_request>.+?)"
    r"\n\nRevision: (?P<revision>.+?)(?:\n\nHuman:)?",
    re.DOTALL,
)
_CHAIN = re.compile(
    r"Human: [^\n]*:\n\n(?P<conversation>.+?)\n\n\{\}(?P<options>\n \(A\) .+?)"
    r"\n\nAssistant: Let's think step by step:\s*(?P<reasoning>.+?)"
    r"\n\nHuman:\nSo the answer is: \((?P<answer>[A-Z])\)",
    re.DOTALL,
)
_BRACKETED = re.compile(r"\n \(([A-Z])\) \[\[\[(.*?)\]\]\](?=\n|$)", re.DOTALL)
_PLAIN = re.compile(r"\n \(([A-Z])\) ([^\n]*)")


class CritiqueDialogue(BaseModel):
    """One few-shot example of the supervised stage: a conversation, its critique and revision."""

    model_config = _FROZEN

    conversation: Text  # "Human: … Assistant: …", the last response being the one revised
    critique_request: Text
    critique: Text
    revision_request: Text
    revision: Text

    @property
    def text(self) -> str:
        """The example in the paper's layout; examples can be joined as they are."""
        return (
            f"\n\n{self.conversation}"
            f"\n\nCritiqueRequest: {self.critique_request}\n\nCritique: {self.critique}"
            f"\n\nRevisionRequest: {self.revision_request}\n\nRevision: {self.revision}"
        )

    @property
    def direct(self) -> str:
        """The example without its critique (the paper's Fig 7), in the same layout."""
        return (
            f"\n\n{self.conversation}"
            f"\n\nRevisionRequest: {self.revision_request}\n\nRevision: {self.revision}"
        )


class ComparisonExample(BaseModel):
    """One few-shot example of the RL stage: a conversation and a better and a worse response."""

    model_config = _FROZEN

    conversation: Text  # "Human: …"
    chosen: Text
    rejected: Text


class ChainOfThoughtExample(BaseModel):
    """One few-shot example of a comparison argued step by step (paper §4.1)."""

    model_config = _FROZEN

    conversation: Text  # "Human: …", though the file writes "H: …"
    options: list[str]
    reasoning: Text
    correct: int  # index of the right option
    template: Text  # the whole example in the paper's layout; {} is the principle's place

    def text(self, principle: str) -> str:
        """The example with its principle in place; examples can be joined as they are."""
        return self.template.replace("{}", principle, 1)


class FewShots(BaseModel):
    """The paper's few-shot examples."""

    model_config = _FROZEN

    critique_revision: list[CritiqueDialogue]
    comparison: list[ComparisonExample]
    chain_of_thought: list[ChainOfThoughtExample]


class _Parts(NamedTuple):
    conversation: str
    question: str
    labels: list[str]
    options: list[str]


class HHHRow(BaseModel):
    """One multiple-choice row of the released evaluations (paper §2 and Appendix B)."""

    model_config = _FROZEN

    prompt: Text
    corrects: list[Text] = Field(min_length=1, max_length=1)
    incorrects: list[Text] = Field(min_length=1)
    text_correct: Text | None = None
    text_incorrect: Text | None = None

    @model_validator(mode="after")
    def _labels_agree(self) -> Self:
        labels = _parts(self.prompt).labels
        named = sorted(label.strip(" ()") for label in self.corrects + self.incorrects)
        if named != labels:
            raise ValueError(f"prompt has options {labels}, corrects and incorrects name {named}")
        return self

    @property
    def conversation(self) -> str:
        """The conversation that is judged: "Human: …" and, where there are any, the replies."""
        return _parts(self.prompt).conversation

    @property
    def question(self) -> str:
        """The principle or the question, without "Options:"."""
        return _parts(self.prompt).question

    @property
    def options(self) -> list[str]:
        """Texts of the options in their order."""
        return _parts(self.prompt).options

    @property
    def n_options(self) -> int:
        """Number of options: 2, or 9 in the classification of harms."""
        return len(self.options)

    @property
    def correct(self) -> int:
        """Index of the right option."""
        return _parts(self.prompt).labels.index(self.corrects[0].strip(" ()"))


class _Sample(BaseModel):
    sampled_string: str


class _SampleRow(BaseModel):
    """One prompt of a samples file of the RL stage; what else stands there is left alone."""

    rl_prompt: Text
    sampled_answers: list[_Sample] = Field(min_length=1)


class _RequestPair(BaseModel):
    prompt: list[Stripped] = Field(min_length=1, max_length=1)
    edit_request: Stripped


class _RawComparison(BaseModel):
    prompt: Stripped
    corrects: list[Stripped] = Field(min_length=1, max_length=1)
    incorrects: list[Stripped] = Field(min_length=1, max_length=1)


class _RawChain(BaseModel):
    prompt: Stripped


# The forms of the five prompt files.
_Instructions = Annotated[dict[Stripped, _RequestPair], Field(min_length=1)]
_Lines = Annotated[list[Stripped], Field(min_length=1)]
_Comparisons = Annotated[list[_RawComparison], Field(min_length=1)]
_Chains = Annotated[list[_RawChain], Field(min_length=1)]


def paper_cache() -> Path:
    """The user's cache folder for the paper's files: where `fetch_paper` puts them by default."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cai-lite" / "paper"


def paper_folder() -> Path | None:
    """The folder with the paper's files: CAI_LITE_PAPER, else the cache, None if it holds none."""
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise InputError(f"{ENVIRONMENT_VARIABLE}={named} is not a folder; correct or unset it")
        return folder
    cache = paper_cache()
    return cache if any(_find(cache, name) for name in PAPER_FILES) else None


def paper_file(folder: str | Path, name: str) -> Path:
    """Path of a released file by its bare name, in the folder, its `prompts` or its `evals`."""
    if path := _find(folder, name):
        return path
    raise InputError(
        f"{folder}: no {name} here, nor in prompts/, evals/ or samples/; "
        f"fetch the paper's files or set {ENVIRONMENT_VARIABLE} to the folder that has them"
    )


def import_paper_constitution(folder: str | Path) -> Constitution:
    """The paper's own constitution: 16 critique/revision pairs and 16 comparison principles.

    Ids are the file's keys (`harmful0` …) and `comparison-0` …; the comparison principles have no
    pointwise question and no contrast prompts (paper Appendix C).
    """
    pairs_path = paper_file(folder, "CritiqueRevisionInstructions.json")
    pairs = _read_json(pairs_path, TypeAdapter(_Instructions))
    principles_path = paper_file(folder, "RLMadisonInstructions.json")
    principles = _read_json(principles_path, TypeAdapter(_Lines))
    return Constitution(
        name="paper",
        description="The principles that Bai et al. (2022) released with the paper.",
        critique_revision=[_request_pair(pairs_path, key, pair) for key, pair in pairs.items()],
        comparison=[
            Principle(
                id=f"comparison-{i}",
                principle=_inside(principles_path, f"[{i}]", text, "", "Options:"),
            )
            for i, text in enumerate(principles)
        ],
    )


def paper_few_shots(folder: str | Path) -> FewShots:
    """The paper's few-shot examples: 5 critique dialogues, 5 comparisons, 6 chains of thought.

    The files' slips in layout (a missing or an extra turn marker, missing newlines) are mended;
    the wording is left alone.
    """
    dialogues = paper_file(folder, "CritiqueRevisionFewShotPrompts.json")
    comparisons = paper_file(folder, "RLMadisonFewShotPrompts.json")
    chains = paper_file(folder, "RLMadisonPrecogFewShotPrompts.json")
    return FewShots(
        critique_revision=[
            CritiqueDialogue(**_match(_DIALOGUE, text, dialogues, f"[{i}]"))
            for i, text in enumerate(_read_json(dialogues, TypeAdapter(_Lines)))
        ],
        comparison=[
            ComparisonExample(
                conversation=row.prompt.removesuffix("\n\nAssistant:"),
                chosen=row.corrects[0],
                rejected=row.incorrects[0],
            )
            for row in _read_json(comparisons, TypeAdapter(_Comparisons))
        ],
        chain_of_thought=[
            _chain(chains, f"[{i}].prompt", row.prompt)
            for i, row in enumerate(_read_json(chains, TypeAdapter(_Chains)))
        ],
    )


def load_hhh(path: str | Path) -> list[HHHRow]:
    """Read an evaluation file in the release's JSONL format.

    `438HHHEvaluations.jsonl` is the HHH evaluation (two responses to choose from, paper §2);
    `HarmfulVsEthical.jsonl` and `HarmfulnessClassification.jsonl` are Appendix B's (a conversation
    to judge, with two and nine options). Raises InputError with file, line and field.
    """
    return _rows(Path(path), HHHRow)


def load_samples(path: str | Path) -> list[str]:
    """Answers that the paper's models of the RL stage wrote, all of a file, in its order.

    A file of `samples/` has 17 answers to each prompt; the mark at which one stopped is taken off.
    Raises InputError with file, line and field.
    """
    rows = _rows(Path(path), _SampleRow)
    return [_said(sample.sampled_string) for row in rows for sample in row.sampled_answers]


def _said(sample: str) -> str:
    for stop in _STOPS:
        sample = sample.removesuffix(stop)
    return sample.strip()


def without_few_shots(rows: list[HHHRow], examples: list[ChainOfThoughtExample]) -> list[HHHRow]:
    """Leave out the rows that a model has seen answered: whose conversation opens as an example's.

    All six of the paper's chain-of-thought examples are also in its HHH evaluation, in 20 rows.
    """
    seen = tuple(" ".join(example.conversation.split()) for example in examples)
    return [row for row in rows if not " ".join(row.conversation.split()).startswith(seen)]


def fetch_paper(
    folder: str | Path,
    base_url: str = BASE_URL,
    opener: Callable[..., Any] = urllib.request.urlopen,
) -> list[Path]:
    """Download the released files that the folder lacks, and return the paths of those downloaded.

    Each file is checked before it takes its place, so a broken download leaves nothing behind.
    """
    folder = Path(folder)
    missing = [name for name in PAPER_FILES if not _find(folder, name)]
    for name in missing:
        url = base_url.rstrip("/") + "/" + name
        body = _download(url, folder, opener)
        _check(body, name, url, folder)
        _put(body, folder / name)
    return [folder / name for name in missing]


def _find(folder: str | Path, name: str) -> Path | None:
    places = (Path(folder, part, Path(name).name) for part in ("", "prompts", "evals", "samples"))
    return next((path for path in places if path.is_file()), None)


def _download(url: str, folder: Path, opener: Callable[..., Any]) -> bytes:
    try:
        with opener(url, timeout=TIMEOUT_S) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"could not download {url} ({error}); {_by_hand(folder)}") from error


def _check(body: bytes, name: str, url: str, folder: Path) -> None:
    """Refuse a file that differs from the pinned one, or a web page in place of an unpinned one."""
    expected = PAPER_FILES[name]
    found = hashlib.sha256(body).hexdigest()
    if expected and found != expected:
        what = f"its SHA-256 is {found}, expected {expected}"
    elif not expected and not body.startswith(b"{"):
        what = f"expected JSON lines, it begins with {body[:20]!r}"
    else:
        return
    raise InputError(f"{url} is not the released file ({what}); nothing kept; {_by_hand(folder)}")


def _by_hand(folder: Path) -> str:
    return f"put the files into {folder} by hand or set {ENVIRONMENT_VARIABLE}=FOLDER"


def _put(body: bytes, path: Path) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(body)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if part.is_file():
            part.unlink()


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); fetch the paper's files "
            f"or set {ENVIRONMENT_VARIABLE} to the folder that has them"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; fetch it again") from error


def _read_json(path: Path, shape: TypeAdapter[T]) -> T:
    try:
        return shape.validate_python(json.loads(_read_text(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: not JSON ({error.msg})") from error
    except ValidationError as error:
        raise InputError(f"{path}: {_complaints(error)}") from error


def _rows(path: Path, kind: type[R]) -> list[R]:
    """A JSONL file's rows; blank lines are left out, a file without rows is an error."""
    lines = enumerate(_read_text(path).split("\n"), start=1)
    rows = [_row(path, number, line, kind) for number, line in lines if line.strip()]
    if not rows:
        raise InputError(f"{path}: no rows; expected one JSON object a line")
    return rows


def _row(path: Path, number: int, line: str, kind: type[R]) -> R:
    try:
        return kind.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number}: not JSON ({error.msg})") from error
    except ValidationError as error:
        raise InputError(f"{path}: line {number}: {_complaints(error)}") from error


def _complaints(error: ValidationError) -> str:
    """All of pydantic's complaints: "corrects: Field required; prompt: …"."""
    texts = []
    for e in error.errors():
        field, what = ".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")
        texts.append(f"{field}: {what}" if field else what)
    return "; ".join(texts)


def _request_pair(path: Path, key: str, pair: _RequestPair) -> CritiqueRevision:
    critique, revision = f"{key}.prompt", f"{key}.edit_request"
    return CritiqueRevision(
        id=key,
        critique_request=_inside(path, critique, pair.prompt[0], "CritiqueRequest:", "Critique:"),
        revision_request=_inside(
            path, revision, pair.edit_request, "RevisionRequest:", "Revision:"
        ),
    )


def _inside(path: Path, field: str, text: str, begin: str, end: str) -> str:
    """The text between the words that begin and end it."""
    inside = text.removeprefix(begin).removesuffix(end).strip()
    if not (text.startswith(begin) and text.endswith(end) and inside):
        expected = f"{begin} … {end}".strip()
        raise InputError(f"{path}: {field}: expected '{expected}', found {text[:60]!r}")
    return inside


def _match(pattern: re.Pattern[str], text: str, path: Path, field: str) -> dict[str, str]:
    match = pattern.fullmatch(text)
    if not match:
        raise InputError(f"{path}: {field}: not in the released layout, begins {text[:60]!r}")
    return match.groupdict()


def _chain(path: Path, field: str, text: str) -> ChainOfThoughtExample:
    found = _match(_CHAIN, text, path, field)
    labels, options = _labels_options(found["options"], _BRACKETED)
    if found["answer"] not in labels:
        raise InputError(f"{path}: {field}: the answer is {found['answer']}, options are {labels}")
    return ChainOfThoughtExample(
        conversation=_speakers(found["conversation"]),
        options=options,
        reasoning=found["reasoning"],
        correct=labels.index(found["answer"]),
        template=f"\n\n{text}",
    )


def _speakers(conversation: str) -> str:
    """Write out H: and A:, so that a conversation compares equal to the evaluation's."""
    written = re.sub(r"^H:", "Human:", conversation, flags=re.MULTILINE)
    return re.sub(r"^A:", "Assistant:", written, flags=re.MULTILINE)


def _parts(prompt: str) -> _Parts:
    """Take a row's prompt apart: introduction, conversation, question, options."""
    start = prompt.find("\n (A) [[[")
    pattern = _BRACKETED
    if start < 0:  # options without brackets stand on one line each, behind all else that has any
        start, pattern = prompt.rfind("\n (A) "), _PLAIN
    if start < 0:
        raise ValueError("prompt has no options such as ' (A) …'")
    head, _, question = prompt[:start].rpartition("\n\n")
    conversation = head.strip().partition("\n\n")[2]
    labels, options = _labels_options(prompt[start:], pattern)
    return _Parts(conversation, question.strip().removesuffix("Options:").strip(), labels, options)


def _labels_options(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """["A", "B"] and the texts that stand behind them."""
    found: list[tuple[str, str]] = pattern.findall(text)
    return [label for label, _ in found], [option for _, option in found]
