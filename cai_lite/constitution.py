"""Constitutions: the principles a model is asked to criticise, revise and compare by (paper §1.2).

A constitution is a YAML file with two lists: `critique_revision`, for the supervised stage, and
`comparison`, for the reinforcement-learning stage. `load_constitution` reads one and says what is
wrong with it by file, line and field; `parse_constitution` does so with a text.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from cai_lite.errors import InputError
from cai_lite.files import shipped

MAX_BYTES = 1_000_000
MAX_DEPTH = 8  # a constitution needs 3

T = TypeVar("T")
Text = Annotated[str, StringConstraints(min_length=1)]
Loc = tuple[int | str, ...]  # ("comparison", 0, "question")

_STRICT = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class CritiqueRevision(BaseModel):
    """One way to criticise a response and to revise it (paper §3.1)."""

    model_config = _STRICT

    id: Text
    critique_request: Text
    revision_request: Text


class Principle(BaseModel):
    """One way to tell which of two responses is better (paper §4.1).

    `question` is asked of one response alone, and yes means better. `good` and `bad` are system
    prompts for contrast pairs, whose answers begin with `good_opening` and `bad_opening`. These
    five may be empty: the paper's own principles have none.
    """

    model_config = _STRICT

    id: Text
    principle: Text
    question: str = ""
    good: str = ""
    bad: str = ""
    good_opening: str = ""
    bad_opening: str = ""


class Constitution(BaseModel):
    """A named set of principles for both stages."""

    model_config = _STRICT

    name: Text
    description: Text
    spirit: str = ""
    critique_opening: str = "The response"
    revision_openings: list[Text] = []
    reason_opening: str = ""
    critique_revision: list[CritiqueRevision] = Field(min_length=1)
    comparison: list[Principle] = Field(min_length=1)

    @field_validator("critique_revision", "comparison")
    @classmethod
    def _ids_differ(
        cls, items: list[CritiqueRevision] | list[Principle]
    ) -> list[CritiqueRevision] | list[Principle]:
        ids = [item.id for item in items]
        repeated = sorted({i for i in ids if ids.count(i) > 1})
        if repeated:
            raise ValueError(f"ids used more than once: {', '.join(repeated)}")
        return items


class _Problem(NamedTuple):
    line: int
    text: str


def shipped_constitutions() -> list[str]:
    """Names of the constitutions that come with the package."""
    return sorted(path.stem for path in shipped("constitutions").glob("*.yaml"))


def load_constitution(path_or_name: str | Path) -> Constitution:
    """Read a shipped constitution by its name, or any other by its path.

    Raises InputError with every problem of the file in one message. A name wins over a file of the
    same name in the current folder; write `./name` for the file.
    """
    path = _path_of(path_or_name)
    return parse_constitution(_read(path), path)


def parse_constitution(text: str, source: str | Path = "the text") -> Constitution:
    """Read a constitution from YAML text; `source` is what messages call it.

    Raises InputError with every problem of the text, by line and field, in one message.
    """
    root = _compose(source, text)
    lines: dict[Loc, int] = {}
    problems: list[_Problem] = []
    data = _plain(root, (), lines, problems)
    problems += _repeated_ids(data, lines)
    try:
        constitution = Constitution.model_validate(data)
    except ValidationError as error:
        # the one value_error is _ids_differ, which _repeated_ids has told with its lines
        problems += [_explain(e, lines) for e in error.errors() if e["type"] != "value_error"]
    if problems:
        listed = "; ".join(f"line {p.line}: {p.text}" for p in sorted(problems))
        raise InputError(f"{source}: {listed}")
    return constitution


def save_constitution(constitution: Constitution, path: str | Path) -> None:
    """Write YAML that `load_constitution` reads back as an equal constitution."""
    text = yaml.safe_dump(constitution.model_dump(), sort_keys=False, allow_unicode=True, width=100)
    Path(path).write_text(text, encoding="utf-8")


def constitution_sha256(constitution: Constitution) -> str:
    """Hash of what the constitution says, whatever the layout and comments of its file."""
    canonical = json.dumps(constitution.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def draw(items: Sequence[T], n: int, seed: int) -> list[T]:
    """Draw n items independently and with replacement (paper §3.1: one pair at each round)."""
    if n and not items:
        raise InputError(f"cannot draw {n} from an empty list; give it a constitution's list")
    return random.Random(seed).choices(items, k=n) if n else []


def _path_of(path_or_name: str | Path) -> Path:
    if isinstance(path_or_name, str) and path_or_name in shipped_constitutions():
        return shipped("constitutions", f"{path_or_name}.yaml")
    path = Path(path_or_name)
    if os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        return path
    what = "a folder" if os.path.isdir(path) else "neither a file nor a shipped constitution"
    names = ", ".join(shipped_constitutions())
    raise InputError(f"{path_or_name} is {what}; give the path of a YAML file or one of: {names}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES:,} bytes, too large for a constitution")
    try:
        return raw.decode("utf-8-sig")  # some editors put a byte-order mark in front
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from error


def _compose(source: str | Path, text: str) -> yaml.Node:
    """Parse to nodes, which know their lines; nothing in the file is ever constructed or run."""
    try:
        _only_plain_yaml(source, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line, what = _yaml_problem(error, text)
        raise InputError(f"{source}: line {line}: not YAML ({what})") from error
    if not isinstance(root, yaml.MappingNode):
        line = _start(root) if root else 1
        known = ", ".join(Constitution.model_fields)
        raise InputError(f"{source}: line {line}: expected fields ({known}), found {_kind(root)}")
    return root


def _only_plain_yaml(source: str | Path, text: str) -> None:
    """Refuse what a constitution has no use for and a hostile file does."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _start(event)
        if isinstance(event, yaml.AliasEvent):
            raise InputError(
                f"{source}: line {line}: YAML alias *{event.anchor}; write the text out"
            )
        if tag := getattr(event, "tag", None):
            raise InputError(f"{source}: line {line}: YAML tag {tag}; write plain text")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(f"{source}: line {line}: nested more than {MAX_DEPTH} deep")


def _yaml_problem(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and reason of a parser's error (a MarkedYAMLError) or of a reader's (a ReaderError)."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return (mark.line + 1 if mark else 1), str(error.problem or error.context)
    position = getattr(error, "position", 0)
    return text.count("\n", 0, position) + 1, getattr(error, "reason", str(error))


def _start(found: yaml.Node | yaml.Event) -> int:
    """Line of a node or event, counted from 1."""
    return found.start_mark.line + 1 if found.start_mark else 1


def _plain(node: yaml.Node, loc: Loc, lines: dict[Loc, int], problems: list[_Problem]) -> object:
    """Turn nodes into dicts, lists and strings, noting the line of each and keys that occur twice.

    Every scalar stays the text that was written, so that `good_opening: No` is "No", not False.
    """
    lines.setdefault(loc, _start(node))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*loc, i), lines, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return dict(_pairs(node, loc, lines, problems))
    return "" if node.tag == "tag:yaml.org,2002:null" else node.value


def _pairs(
    node: yaml.MappingNode, loc: Loc, lines: dict[Loc, int], problems: list[_Problem]
) -> Iterator[tuple[str, object]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = _start(key)
        if not isinstance(key, yaml.ScalarNode):
            problems.append(_Problem(line, f"field name expected, found {_kind(key)}"))
        elif key.value in seen:
            text = f"{_field((*loc, key.value))} is here again, first on line {seen[key.value]}"
            problems.append(_Problem(line, text))
        else:
            seen[key.value] = lines[(*loc, key.value)] = line
            yield key.value, _plain(value, (*loc, key.value), lines, problems)


def _repeated_ids(data: object, lines: dict[Loc, int]) -> list[_Problem]:
    """Ids used twice in one list, found in the raw data so that other errors do not hide them."""
    problems = []
    for field in ("critique_revision", "comparison"):
        first: dict[str, int] = {}
        for loc, name in _ids(data, field):
            line = _line(loc, lines)
            if name in first:
                text = f"{_field(loc)} {name!r} is taken on line {first[name]}; rename one"
                problems.append(_Problem(line, text))
            first.setdefault(name, line)
    return problems


def _ids(data: object, field: str) -> Iterator[tuple[Loc, str]]:
    items = data.get(field) if isinstance(data, dict) else None
    for i, item in enumerate(items if isinstance(items, list) else []):
        name = item.get("id") if isinstance(item, dict) else None
        if isinstance(name, str) and name.strip():
            yield (field, i, "id"), name.strip()


def _explain(error: ErrorDetails, lines: dict[Loc, int]) -> _Problem:
    """One of pydantic's errors in our words, on the line of its field or of what encloses it."""
    loc = error["loc"]
    return _Problem(_line(loc, lines), f"{_field(loc)} {_complaint(error)}")


def _complaint(error: ErrorDetails) -> str:
    loc, found = error["loc"], _kind(error["input"])
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"is not a field; the fields here are {_known(loc[:-1])}"
        case "string_too_short":
            return "is empty; write some text"
        case "string_type":
            return f"should be text, found {found}"
        case "too_short":
            return "has no principles; write at least one"
        case "list_type":
            return f"should be a list of principles, each begun with '-', found {found}"
        case "model_type":
            return f"should have the fields {_known(loc)}, found {found}"
    return error["msg"]


def _known(parent: Loc) -> str:
    """The fields that may stand at a place in the file."""
    item: type[BaseModel] = CritiqueRevision if parent[:1] == ("critique_revision",) else Principle
    return ", ".join((item if parent else Constitution).model_fields)


def _line(loc: Loc, lines: dict[Loc, int]) -> int:
    while loc not in lines:
        loc = loc[:-1]
    return lines[loc]


def _field(loc: Loc) -> str:
    """The way to a field as a reader writes it: comparison[0].question."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _kind(value: object) -> str:
    if isinstance(value, list | yaml.SequenceNode):
        return "a list"
    if isinstance(value, dict | yaml.MappingNode):
        return "fields"
    return "nothing" if value in (None, "") else "text"
