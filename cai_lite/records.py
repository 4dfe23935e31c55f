"""The rows that stages leave for each other, and the append-only file they live in."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError

_KNOWN = 0.9  # P(better) of an answer that was made to be the better one: a soft label, too


class Row(BaseModel):
    """One line of a rows file; `id` is unique in its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str


class Try(BaseModel):
    """One candidate revision, its contrast score, and why it was not sound ("" if it was).

    `relevance`, in nats, says how much it is about its prompt, where that was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    response: str
    score: float
    fault: str = ""
    relevance: float | None = None


class Revision(Row):
    """One critique and revision of a response (paper §3.1); round 0 is the first response."""

    prompt_id: str
    prompt: str
    round: int
    principle: str = ""
    critique: str = ""
    response: str  # the text after this round
    score: float | None = None  # contrast score of `response`, P(principled) in 0..1
    dropped: str = ""  # why it is not trained on; empty: sound
    kept_previous: bool = False  # no candidate was sound, so the text of the round before stands
    tries: list[Try] = []  # all candidates of the round


class HelpfulAnswer(Row):
    """The helpful start's own answer to a harmless prompt, mixed into SL-CAI (paper §3.2)."""

    prompt: str
    response: str
    dropped: str = ""


class Pair(Row):
    """Two samples of SL-CAI for one red-team prompt, not yet judged (paper §4.1)."""

    prompt: str
    a: str
    b: str
    redrawn: int = 0  # how often b was drawn again because it was too much like a


class Comparison(Pair):
    """A pair with its soft label: P(A is better), by which method and principles (paper §4.1)."""

    p_a: float
    method: str
    principles: list[str]
    # raw numbers behind p_a, as the method names them; null: a sample without a verdict
    scores: dict[str, list[float | None]] = {}
    thoughts: list[str] = []  # chain of thought: what the model said before its verdicts


def known_comparison(
    id: str, prompt: str, better: str, worse: str, method: str, *, better_is_a: bool
) -> Comparison:
    """A comparison that nobody judged: one answer was made to be the better one, as `method` says.

    Its label is soft all the same, 0.9, for it was made so and not read.
    """
    a, b, p_a = (better, worse, _KNOWN) if better_is_a else (worse, better, 1 - _KNOWN)
    return Comparison(id=id, prompt=prompt, a=a, b=b, p_a=p_a, method=method, principles=[])


class Completion(Row):
    """One completion of the policy at one step of RL, with its reward by the preference model."""

    step: int
    prompt: str
    completion: str
    reward: float


class ContrastPair(Row):
    """Two answers to one prompt, one under a principle and one under its opposite."""

    prompt: str
    principle: str
    good: str
    bad: str
    good_opening: str = ""  # read before `good`, but not counted


class LabelledAnswer(Row):
    """An answer to a red-team prompt and what a reader says it does; it teaches the instrument."""

    model: str
    prompt_id: str
    prompt: str
    response: str
    outcome: str
    readings: list[str]  # what each reader said, in order


class Answer(Row):
    """One model's answer to one evaluation prompt, and what the measures say of it."""

    model: str
    prompt_set: str
    prompt_id: str
    category: str
    prompt: str
    response: str
    outcome: str  # helps | declines | refuses | redirects | broken, by the outcome classifier
    passed: bool | None = None  # the check of a helpful prompt
    pass_share: float | None = None  # of several answers to it, this one among them
    reward: float | None = None  # the preference model's
    harmfulness: float | None = None  # 0..4, by the outcome classifier


class Judgement(Row):
    """Which of two models' answers to one prompt a judge holds for the better one."""

    prompt_set: str
    prompt_id: str
    model_a: str
    model_b: str
    p_a: float
    judge: str
    p_first: list[float] = []  # P(the answer shown first) in both orders, of a judge who is asked


R = TypeVar("R", bound=Row)


class Rows(Generic[R]):
    """An append-only JSONL file of one kind of row that survives a kill at any byte.

    A batch is written with one write and fsync; a torn last line is not read, and the next append
    cuts it off.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self.kind = path, kind

    def _whole_lines(self) -> bytes:
        data = self.path.read_bytes() if self.path.exists() else b""
        return data[: data.rfind(b"\n") + 1]

    def read(self) -> list[R]:
        """All rows in file order; InputError names the line that is not a row."""
        lines = self._whole_lines().splitlines()
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def _parse(self, number: int, line: bytes) -> R:
        try:
            return self.kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the line"
            raise InputError(
                f"{self.path}, line {number}: {field}: {first['msg']}; delete the file to make "
                "its rows again"
            ) from None

    def append(self, rows: Iterable[R]) -> None:
        """Write rows at the end, on disk when this returns."""
        text = "".join(row.model_dump_json() + "\n" for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.truncate(len(self._whole_lines()))
            view = memoryview(text.encode())
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())


T = TypeVar("T")


def fill(
    store: Rows[R],
    work: Sequence[T],
    row_id: Callable[[T], str],
    make: Callable[[Sequence[T]], Sequence[R]],
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
    *,
    may_lack: bool = False,
) -> list[R]:
    """Make the rows that `store` lacks, in fixed batches, and return all of `work`'s rows in order.

    A batch that is only partly on disk is made again as a whole, so that a resumed run computes
    just what an undisturbed one does; rows already there are kept. With `may_lack`, `make` may
    leave out rows, and they are missing here too; without it that is a KeyError.
    """
    have = {row.id: row for row in store.read()}
    for start in range(0, len(work), batch_size):
        batch = work[start : start + batch_size]
        missing = {row_id(item) for item in batch} - have.keys()
        if missing:
            fresh = [row for row in make(batch) if row.id in missing]
            store.append(fresh)
            have.update((row.id, row) for row in fresh)
        advance(len(batch))
    return [have[name] for name in map(row_id, work) if not may_lack or name in have]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: a temporary neighbour, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The value in a JSON file; InputError if it is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there; run the stage that makes it first") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); delete it and run again") from None
