"""Prompt sets, the checks that need no judge, and loaders for other people's data."""

import codecs
import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import InputError
from .files import shipped

PROMPT_SETS = ("red_team", "helpful", "borderline", "edge_cases")
Split = Literal["train", "eval"]
Message = dict[str, str]  # {"role": "user" or "assistant", "content": "..."}

# A list item: a line that begins with -, *, • or a number followed by . or ), then some text.
_ITEM = re.compile(r"^[ \t]*(?:[-*][ \t]+|•[ \t]*|\d+[.)][ \t]+)(?=\S)", re.M)
_WORD = re.compile(r"[^\W_]+(?:[.,'-][^\W_]+)*")
# A full stop after one letter (e.g., 3 p.m., J. Smith) or a title does not end a sentence.
_STOP = r"(?<!\b[A-Za-z])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)\."
_SENTENCE_END = re.compile(rf"(?:{_STOP}|[!?…])+[\"')\]”*]*\s+|\n+")


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression ({error})") from None
    return value


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(f"{list(bounds)} is not a range; expected 0 <= min <= max")
    return bounds


Text = Annotated[str, Field(pattern=r"\S")]
Words = Annotated[list[Text], Field(min_length=1)]
Bounds = Annotated[tuple[int, int], AfterValidator(_ordered)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]


class Check(BaseModel):
    """A check of a helpful answer that needs no judge: every field that is given must hold.

    Words are looked for whatever their case and between word boundaries: "art" is not in "party",
    nor "7" in "17" or "7.5". The numbers of a numbered list do not count as words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    any: Words | None = Field(
        default=None, description="a list of words of which at least one occurs"
    )
    all: Words | None = Field(default=None, description="a list of words that all occur")
    none: Words | None = Field(default=None, description="a list of words of which none occurs")
    items: Bounds | None = Field(default=None, description="[min, max], a number of list items")
    words: Bounds | None = Field(default=None, description="[min, max], a number of words")
    sentences: Bounds | None = Field(default=None, description="[min, max], a number of sentences")
    matches: Pattern | None = Field(default=None, description="a regular expression")

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if all(getattr(self, name) is None for name in Check.model_fields):
            raise ValueError(f"asks nothing; expected one of {', '.join(Check.model_fields)}")
        return self

    def holds(self, answer: str) -> bool:
        """Whether the answer passes: every field that is given holds."""
        text = unicodedata.normalize("NFC", answer).replace("’", "'")
        return self._words_hold(_ITEM.sub("", text)) and self._form_holds(text)

    def _words_hold(self, text: str) -> bool:
        return (
            (self.any is None or any(_occurs(word, text) for word in self.any))
            and all(_occurs(word, text) for word in self.all or [])
            and not any(_occurs(word, text) for word in self.none or [])
        )

    def _form_holds(self, text: str) -> bool:
        counts = (
            (self.items, _count_items),
            (self.words, _count_words),
            (self.sentences, _count_sentences),
        )
        return all(
            bounds[0] <= count(text) <= bounds[1] for bounds, count in counts if bounds is not None
        ) and (self.matches is None or bool(re.search(self.matches, text, re.I | re.M)))


def _occurs(word: str, text: str) -> bool:
    """Whether the word or phrase stands in the text with no letter or digit joined to it."""
    word = unicodedata.normalize("NFC", word.strip()).replace("’", "'")
    before = r"(?<![^\W_])(?<!\d[.,])" if word[0].isdigit() else r"(?<![^\W_])"
    after = r"(?![^\W_])(?![.,]\d)" if word[-1].isdigit() else r"(?![^\W_])"
    body = r"\s+".join(re.escape(part) for part in word.split())
    start = before if word[0].isalnum() else ""
    end = after if word[-1].isalnum() else ""
    return re.search(start + body + end, text, re.I) is not None


def _count_items(text: str) -> int:
    return len(_ITEM.findall(text))


def _count_words(text: str) -> int:
    return len(_WORD.findall(_ITEM.sub("", text)))


def _count_sentences(text: str) -> int:
    """Stretches of text up to a full stop, ! or ?, or to the end of the line."""
    parts = _SENTENCE_END.split(_ITEM.sub("", text))
    return sum(_WORD.search(part) is not None for part in parts)


class Prompt(BaseModel):
    """One question or request of a prompt set, with what is known of a good answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text = Field(description="a name")
    prompt: Text = Field(description="a question or request")
    category: str = Field(default="", description="text")
    split: Split = Field(default="eval", description="'train' or 'eval'")
    check: Check | None = Field(default=None, description='an object such as {"any": ["Paris"]}')
    reference: str = Field(default="", description="text, a good answer")
    why: str = Field(default="", description="text, why the row is in the set")
    tension: str = Field(default="", description="text, which principles pull against each other")

    @property
    def sounds_harmful(self) -> bool:
        """Whether its category says that it asks for no harm and merely sounds so."""
        return self.category.startswith("sounds_harmful")


def shipped_prompts(
    name: str, split: Split | None = None, limit: int | None = None
) -> list[Prompt]:
    """Rows of a prompt set that comes with the package: one of PROMPT_SETS.

    `split` and `limit` are those of `load_prompts`.
    """
    if name not in PROMPT_SETS:
        raise InputError(
            f"prompt set {name!r} is unknown; expected one of {', '.join(PROMPT_SETS)}, "
            "or load a file of your own with load_prompts(path)"
        )
    return load_prompts(shipped("data", f"{name}.jsonl"), split, limit)


def prompt_set(source: str, split: Split, limit: int | None = None) -> list[Prompt]:
    """Rows of a shipped set by its name, else of any JSONL, CSV or hub data set.

    In a file whose rows name no split every fourth row is for evaluation.
    """
    if source in PROMPT_SETS:
        return shipped_prompts(source, split, limit)
    own = source.endswith(".jsonl") and "prompt" in next(_read_rows(Path(source)), (0, {}))[1]
    prompts = load_prompts(source) if own else load_table(source)
    if not any("split" in prompt.model_fields_set for prompt in prompts) or not own:
        parts: tuple[Split, ...] = ("train", "train", "train", "eval")
        prompts = [p.model_copy(update={"split": parts[i % 4]}) for i, p in enumerate(prompts)]
    kept = [prompt for prompt in prompts if prompt.split == split]
    if not kept:
        raise InputError(f"{source} has no row with split {split!r}; expected some of both splits")
    return _spread(kept, limit)


def load_prompts(
    path: str | Path, split: Split | None = None, limit: int | None = None
) -> list[Prompt]:
    """Prompts of a JSONL file, one object with the fields of `Prompt` a line.

    Rows without `id` are named "row-<line>". `split` keeps the rows of that split. `limit` takes
    the first row of every category, then every second row, and so on, with categories in file
    order, so that a few rows still show them all and a smaller limit is a prefix of a larger one.
    InputError names file, line and field.
    """
    _require_limit(limit)
    if split not in (None, "train", "eval"):
        raise InputError(f"split is {split!r}; expected 'train', 'eval' or None for both")
    rows = list(_read_rows(Path(path)))
    prompts = [_make_prompt(fields, f"{path}, line {line}", line) for line, fields in rows]
    _require_unique(path, [line for line, _ in rows], prompts)
    kept = [prompt for prompt in prompts if split in (None, prompt.split)]
    if not kept:
        raise InputError(f"{path} has no row with split {split!r}; leave split out to take all")
    return _spread(kept, limit)


def _make_prompt(fields: dict[str, Any], where: str, line: int) -> Prompt:
    try:
        return Prompt.model_validate({"id": f"row-{line}", **fields})
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise InputError(f"{where}: {problems}") from None


def _describe(problem: Any) -> str:
    """One of pydantic's errors, as what the field is and what was expected."""
    names = [part for part in problem["loc"] if isinstance(part, str)]
    field = f"field '{'.'.join(map(str, problem['loc']))}'"
    model: type[BaseModel] = Check if len(names) > 1 else Prompt
    if problem["type"] == "extra_forbidden":
        return f"{field} is unknown; expected some of {', '.join(model.model_fields)}"
    if problem["type"] == "value_error":
        return f"{field}: {problem['ctx']['error']}"
    found = "missing" if problem["type"] == "missing" else _show(problem["input"])
    return f"{field} is {found}; expected {model.model_fields[names[-1]].description}"


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _show(value: Any) -> str:
    """A value as JSON, short enough for an error."""
    if value == [] or (isinstance(value, str) and _is_blank(value)):
        return "empty"
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _require_unique(path: str | Path, lines: list[int], prompts: list[Prompt]) -> None:
    first: dict[str, int] = {}
    for line, prompt in zip(lines, prompts, strict=True):
        if prompt.id in first:
            raise InputError(
                f"{path}, line {line}: id {prompt.id!r} is already that of line "
                f"{first[prompt.id]}; expected each id once"
            )
        first[prompt.id] = line


def _require_limit(limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise InputError(f"limit is {limit}; expected 0 or more, or None for all rows")


def _spread(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
    """The first `limit` prompts when categories take turns; all, in file order, without one."""
    if limit is None:
        return prompts
    queues: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        queues.setdefault(prompt.category, []).append(prompt)
    turns = (prompt for turn in zip_longest(*queues.values()) for prompt in turn)
    return list(islice((prompt for prompt in turns if prompt is not None), limit))


def load_table(
    path_or_id: str | Path, column: str = "prompt", split: str = "train", limit: int | None = None
) -> list[Prompt]:
    """Prompts from one column of a .jsonl, .json or .csv file, or of a data set on the hub.

    Reads through `datasets`, so `split` may also be a slice such as "train[:100]"; a local file
    has the one split "train". Rows are named "row-<n>", counted from 1; rows whose cell is empty
    are left out. The prompts are of split "train" if `split` begins so, else of "eval".
    """
    _require_limit(limit)
    table = _read_table(str(path_or_id), split)
    if column not in table.column_names:
        raise InputError(
            f"{path_or_id} has no column {column!r}; its columns are "
            f"{', '.join(table.column_names)}: pass one of them as column="
        )
    ours: Split = "train" if split.startswith("train") else "eval"
    cells = ((n, cell) for n, cell in enumerate(table[column], 1) if not _is_blank(cell))
    prompts = [
        _make_prompt({"prompt": cell, "split": ours}, f"{path_or_id}, row {n}", n)
        for n, cell in islice(cells, limit)
    ]
    if not prompts and limit != 0:
        raise InputError(f"{path_or_id} has no text in column {column!r}; expected prompts")
    return prompts


def _read_table(path_or_id: str, split: str) -> Any:
    """The file or hub data set as a `datasets.Dataset`."""
    import datasets  # here, because it takes most of a second

    reader, options = _table_reader(path_or_id)
    try:
        return datasets.load_dataset(reader, split=split, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        tried = f"a {reader.upper()} file" if options else "a data set on the Hugging Face hub"
        raise InputError(
            f"{path_or_id} could not be read as {tried}, split {split!r}: "
            f"{error.__cause__ or error}; check the name, or pass a local .jsonl or .csv file"
        ) from error


def _table_reader(path_or_id: str) -> tuple[str, dict[str, Any]]:
    """What `datasets.load_dataset` wants for this file, or the hub id with no options."""
    path = Path(path_or_id)
    reader = {".jsonl": "json", ".json": "json", ".csv": "csv"}.get(path.suffix.lower())
    if reader and not path.is_file():
        raise InputError(f"{path} is not there; expected a file, or the id of a hub data set")
    if path.is_file() and not reader:
        raise InputError(f"{path} ends in {path.suffix!r}; expected .jsonl, .json or .csv")
    # "NA" and "None" are text in a column of prompts, not missing values
    text_only = {"keep_default_na": False} if reader == "csv" else {}
    return (reader, {"data_files": str(path), **text_only}) if reader else (path_or_id, {})


class HumanPreference(BaseModel):
    """Two answers to one conversation and which of them a person chose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: list[Message]  # the turns before the last assistant turn
    chosen: str
    rejected: str


def load_hh_rlhf(path: str | Path, limit: int | None = None) -> list[HumanPreference]:
    """Rows of a .jsonl or .jsonl.gz file in the form of Anthropic/hh-rlhf.

    Turns begin with "\\n\\nHuman: " or "\\n\\nAssistant: " and nowhere else; white space around
    a turn is dropped. InputError names the line whose two conversations are not one prompt with
    two answers.
    """
    _require_limit(limit)
    rows = islice(_read_rows(Path(path)), limit)
    return [_make_preference(fields, f"{path}, line {line}") for line, fields in rows]


def _make_preference(fields: dict[str, Any], where: str) -> HumanPreference:
    *chosen_prompt, chosen = _turns(fields, "chosen", where)
    *rejected_prompt, rejected = _turns(fields, "rejected", where)
    if chosen_prompt != rejected_prompt:
        raise InputError(
            f"{where}: chosen and rejected do not share the same prompt; expected "
            "conversations that differ only in the last Assistant turn"
        )
    return HumanPreference(
        prompt=chosen_prompt, chosen=chosen["content"], rejected=rejected["content"]
    )


# A turn may be empty, and then the space after its name is often gone too.
_TURN = re.compile(r"\n\n(Human|Assistant):(?: |\Z|(?=\n\n(?:Human|Assistant):))")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _turns(fields: dict[str, Any], name: str, where: str) -> list[Message]:
    """The conversation in one field as messages; the last one is the assistant's."""
    text = fields.get(name)
    if not isinstance(text, str):
        found = "missing" if text is None else _show(text)
        raise InputError(f"{where}: field {name!r} is {found}; expected a conversation as text")
    before, *parts = _TURN.split(text)
    turns = [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: field {name!r} is {_show(text)}; expected '\\n\\nHuman: ...' "
            "first and '\\n\\nAssistant: ...' last"
        )
    return turns


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank."""
    empty = True
    for line, text in _read_lines(path):
        empty = False
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {line}: not JSON ({error}); expected one object a line"
            ) from None
        if not isinstance(fields, dict):
            raise InputError(f"{path}, line {line}: {_show(fields)} is not an object {{...}}")
        yield line, fields
    if empty:
        raise InputError(f"{path} is empty; expected one JSON object a line")


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every line that is not blank, unpacked where the name ends in .gz."""
    offset = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                text = _decode(raw, f"{path}, line {line}", offset)
                offset += len(raw)
                if text.strip():
                    yield line, text
    except FileNotFoundError:
        raise InputError(f"{path} is not there; expected a JSONL file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} could not be read ({error}); expected a JSONL file") from None


def _decode(raw: bytes, where: str, offset: int) -> str:
    """The line as text, without the byte order mark that some editors put at the start."""
    try:
        return (raw if offset else raw.removeprefix(codecs.BOM_UTF8)).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {offset + error.start} of the file is not UTF-8; save the file as UTF-8"
        ) from None
