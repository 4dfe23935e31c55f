"""A run that is killed goes on where it was and ends with the same rows."""

import importlib
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_SIZES
from safetensors.torch import load_file
from transformers import Trainer
from trl import RLOOTrainer, SFTTrainer

from cai_lite.engine.soft_reward import SoftRewardTrainer
from cai_lite.engine.training import last_checkpoint
from cai_lite.presets import get_preset
from cai_lite.records import Completion, Rows
from cai_lite.run import STAGES, Run, begin_run, open_run

pytestmark = pytest.mark.slow

SIZES = TINY_SIZES | {
    "sl_batch": 2, "pm_batch": 2, "response_tokens": 8, "revision_tokens": 8,
    "candidates": 1,
}  # fmt: skip
NAMES = {
    "critique_revision": ["contrast/pairs.jsonl", "critique_revision/rows.jsonl"],
    "sl_cai": ["sl_cai/answers.jsonl"],
    "ai_feedback": ["ai_feedback/pairs.jsonl", "ai_feedback/comparisons.jsonl"],
    "preference_model": ["preference_model/held_out.json"],
    "rl_cai": ["rl_cai/completions.jsonl"],
    "evaluation": ["evaluation/answers.jsonl"],
}


class Killed(BaseException):
    """In place of a kill: nothing in the package catches it."""


def run_stage(run: Run, name: str) -> dict[str, Any]:
    return getattr(importlib.import_module(f"cai_lite.stages.{name}"), name)(run)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, tiny_stages: None) -> Run:
    """A run that nothing disturbed."""
    preset = get_preset("ci", model=str(tiny_model), quantization="none", **SIZES)
    run = begin_run(tmp_path_factory.mktemp("whole") / "run", preset)
    for name in STAGES:
        run_stage(run, name)
    return run


def before(whole: Run, name: str, folder: Path) -> Run:
    """A copy of the run as it was before one stage began."""
    shutil.copytree(whole.folder, folder)
    later = STAGES[STAGES.index(name) :]
    for part in [*later, *(["contrast"] if name == "critique_revision" else [])]:
        shutil.rmtree(folder / part)
    return open_run(folder)


def same(run: Run, whole: Run, name: str) -> None:
    """Rows equal to the byte; what was trained equal too."""
    for file in NAMES[name]:
        assert (run.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    for file in whole.path(name).rglob("*.safetensors"):
        mine, theirs = (
            load_file(run.path(name) / file.relative_to(whole.path(name))),
            load_file(file),
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[k], theirs[k], atol=1e-6) for k in theirs), file
    numbers = [
        {k: v for k, v in (r.summary(name) or {}).items() if k not in ("seconds", "peak_memory_mb")}
        for r in (run, whole)
    ]
    for key, value in numbers[1].items():
        nested = isinstance(value, list) and any(isinstance(one, dict) for one in value)
        rounds = isinstance(value, float | list) and not nested
        close = pytest.approx(value, abs=1e-5) if rounds else value
        assert numbers[0][key] == close, key
    assert not list(run.path(name).rglob("checkpoint-*"))


def test_the_undisturbed_run_is_whole(whole: Run) -> None:
    assert all(whole.summary(name) for name in STAGES)
    counts = {
        file: len((whole.folder / file).read_text().splitlines())
        for files in NAMES.values()
        for file in files
    }
    assert counts["contrast/pairs.jsonl"] == 8
    assert counts["critique_revision/rows.jsonl"] == 6 * 3
    assert counts["sl_cai/answers.jsonl"] == 6 and counts["ai_feedback/pairs.jsonl"] == 8
    assert counts["rl_cai/completions.jsonl"] == 2 * 2 * 2
    assert counts["evaluation/answers.jsonl"] == 3 * 12


# --- killed while rows are written


def killed_at_append(patch: pytest.MonkeyPatch, number: int, share: float) -> None:
    """Kill at the n-th append, after a share of its bytes."""
    plain: Callable[..., None] = Rows.append
    calls = itertools.count()

    def append(self: Rows[Any], rows: Any) -> None:
        if next(calls) < number:
            return plain(self, rows)
        text = "".join(row.model_dump_json() + "\n" for row in rows).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(text[: int(share * len(text))])
        raise Killed

    patch.setattr(Rows, "append", append)


# --- killed while training

TRAINERS = {"sl_cai": SFTTrainer, "preference_model": SoftRewardTrainer, "rl_cai": RLOOTrainer}


def killed_at_step(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    kind = TRAINERS[name]
    plain, calls = kind.training_step, itertools.count()

    def training_step(self: Any, *args: Any, **more: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return plain(self, *args, **more)

    patch.setattr(kind, "training_step", training_step)


def killed_at_save(patch: pytest.MonkeyPatch, number: int) -> None:
    """Kill while the n-th checkpoint is written: weights are there, the rest is not."""
    plain, calls = Trainer._save_optimizer_and_scheduler, itertools.count()

    def save(self: Any, folder: str) -> None:
        if next(calls) == number:
            weights = Path(folder) / "adapter_model.safetensors"
            if weights.exists():
                os.truncate(weights, weights.stat().st_size // 2)
            raise Killed
        plain(self, folder)

    patch.setattr(Trainer, "_save_optimizer_and_scheduler", save)


def kill(patch: pytest.MonkeyPatch, name: str, where: str, number: int, share: float) -> None:
    if where == "append":
        killed_at_append(patch, number, share)
    elif where == "step":
        killed_at_step(patch, name, number)
    else:
        killed_at_save(patch, number)


@pytest.mark.parametrize(
    ("name", "kills", "step"),
    [
        ("critique_revision", [("append", 1, 0.6), ("append", 3, 0.3)], None),
        ("sl_cai", [("append", 1, 0.99), ("save", 1, 0)], 1),
        ("ai_feedback", [("append", 1, 0.7), ("append", 2, 1.0)], None),
        ("preference_model", [("save", 0, 0), ("step", 2, 0)], 2),
        ("rl_cai", [("append", 1, 0.5), ("save", 0, 0), ("step", 0, 0)], 1),
        ("evaluation", [("append", 4, 0.8), ("append", 3, 0.0)], None),
    ],
)  # fmt: skip
def test_a_stage_that_is_killed_again_and_again_ends_with_the_same_rows(
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kills: list[tuple[str, int, float]],
    step: int | None,
) -> None:
    """`step` is that of the last whole checkpoint after all the kills."""
    run = before(whole, name, tmp_path / "run")
    for where, number, share in kills:
        kill(monkeypatch, name, where, number, share)
        with pytest.raises(Killed):
            run_stage(open_run(run.folder), name)
        monkeypatch.undo()
        assert run.summary(name) is None
    found = last_checkpoint(run.path(name, "checkpoints"))
    assert (found.name if found else None) == (f"checkpoint-{step}" if step else None)
    run_stage(open_run(run.folder), name)
    same(run, whole, name)


def test_completions_are_kept_once(whole: Run) -> None:
    kept = Rows(whole.path("rl_cai", "completions.jsonl"), Completion).read()
    assert [row.id for row in kept] == [f"{s}/{i}" for s in (1, 2) for i in range(4)]


def test_a_checkpoint_without_its_mark_is_not_believed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (2, 9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for step in (2, 9, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    found = last_checkpoint(tmp_path)
    assert found and found.name == "checkpoint-10"


def test_a_stage_before_its_forerunners_says_which_is_missing(whole: Run, tmp_path: Path) -> None:
    from cai_lite.errors import InputError

    for name, missing in (
        ("sl_cai", "critique_revision"), ("ai_feedback", "sl_cai"),
        ("preference_model", "ai_feedback"), ("evaluation", "sl_cai"),
    ):  # fmt: skip
        run = before(whole, missing, tmp_path / f"before-{name}")
        with pytest.raises(InputError, match=f"no finished stage {missing}"):
            run_stage(run, name)
