"""The run folder: what every stage left, the manifest that says what made it, and its lock."""

import fcntl
import gc
import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .constitution import (
    Constitution,
    constitution_sha256,
    load_constitution,
    save_constitution,
    shipped_constitutions,
)
from .data import Prompt, Split, prompt_set
from .errors import InputError
from .files import shipped
from .presets import Preset, get_preset
from .progress import Progress
from .records import read_json, write_json

STAGES = (
    "critique_revision",
    "sl_cai",
    "ai_feedback",
    "preference_model",
    "rl_cai",
    "evaluation",
)
PromptSet = Literal["red_team", "helpful", "borderline"]
_LIBRARIES = (
    "cai-lite",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
)
_BARE = {"manifest.json", "constitution.yaml", "run.lock", "origin.json"}  # of a run without a row


@dataclass(frozen=True)
class Run:
    """An opened run folder: its preset, its constitution, and where each stage's files are."""

    folder: Path
    preset: Preset
    constitution: Constitution
    progress: Progress = field(default_factory=Progress)

    def path(self, stage: str, *parts: str) -> Path:
        """A file or folder of one stage."""
        return self.folder.joinpath(stage, *parts)

    def summary(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage said of itself; None while it is not finished.

        Raises InputError if a stage that it was made from was redone since.
        """
        done = self.path(stage, "done.json")
        if not done.exists():
            return None
        self.refuse_stale(stage)
        return read_json(done)

    def mark(self, stage: str) -> str:
        """A hash that tells one finishing of a stage from the next, whatever both found."""
        files = [self.path(stage, name) for name in ("origin.json", "done.json")]
        found = [path.read_bytes() for path in files if path.exists()]
        return hashlib.sha256(b"\x1f".join(found)).hexdigest()

    def origin(self, stage: str) -> dict[str, Any]:
        """What a stage's files were made from, and the seconds it took so far."""
        path = self.path(stage, "origin.json")
        return read_json(path) if path.exists() else {}  # stages of an older version have none

    def refuse_stale(self, stage: str) -> None:
        """Raise InputError if a stage's files were made from a stage that was redone since."""
        for earlier, mark in self.origin(stage).get("made_from", {}).items():
            if self.summary(earlier) is not None and self.mark(earlier) != mark:
                folder, command = self.path(stage), stage.replace("_", "-")
                raise InputError(
                    f"{folder} was made from a {earlier} that was redone since; delete {folder}, "
                    f"then run `cai-lite {command} --run {self.folder}` again"
                )

    def require(self, stage: str) -> dict[str, Any]:
        """The summary of a stage that must be finished; InputError says how to finish it."""
        found = self.summary(stage)
        if found is None:
            command = stage.replace("_", "-")
            raise InputError(
                f"{self.folder} has no finished stage {stage}; run `cai-lite {command} "
                f"--run {self.folder}` first"
            )
        return found

    def seed(self, *parts: Any) -> int:
        """A seed for one purpose of this run: same run seed and parts, same number."""
        return derive_seed(self.preset.seed, *parts)

    def prompts(self, name: PromptSet, split: Split, limit: int | None = None) -> list[Prompt]:
        """Prompts of the set that the preset names for red_team, helpful or borderline."""
        return prompt_set(getattr(self.preset, name), split, limit)

    def note_model(self, sha256: str) -> None:
        """Note the hash of the weights, or refuse weights other than those the run began with."""
        manifest = read_json(self.folder / "manifest.json")
        known = manifest.get("model_sha256")
        if known and known != sha256:
            raise InputError(
                f"{self.folder} was begun with weights of SHA-256 {known[:12]}…, the model now has "
                f"{sha256[:12]}…; choose another --out or bring the first weights back"
            )
        if not known:
            write_json(self.folder / "manifest.json", manifest | {"model_sha256": sha256})


def derive_seed(*parts: Any) -> int:
    """A number in 0..2**31-1 from the text of the parts, the same on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def begin_run(folder: str | Path, preset: Preset, progress: Progress | None = None) -> Run:
    """Open a run folder for this preset, making it if need be.

    Raises InputError if the folder was begun with another preset, model or constitution.
    """
    folder = Path(folder)
    constitution = _constitution(folder, preset.constitution)
    wanted = _manifest(preset, constitution)
    if (folder / "manifest.json").exists():
        _check_same(folder, read_json(folder / "manifest.json"), wanted)
    elif folder.exists() and _begun(folder):
        raise InputError(f"{folder} holds files but no manifest.json; choose an empty --out")
    run = Run(folder, preset, constitution, progress or Progress())
    _write_beginning(run)
    return run


def _constitution(folder: Path, name: str) -> Constitution:
    """The constitution of that name or path; the run's own copy if the file is no longer there."""
    kept = folder / "constitution.yaml"
    gone = name not in shipped_constitutions() and not os.path.exists(name)
    return load_constitution(kept if gone and kept.exists() else name)


def _write_beginning(run: Run) -> None:
    """Write the manifest, if there is none, and beside it the constitution that it has hashed."""
    manifest = run.folder / "manifest.json"
    if not manifest.exists():
        write_json(manifest, _manifest(run.preset, run.constitution))
        partial = run.folder / "constitution.yaml.tmp"
        save_constitution(run.constitution, partial)
        partial.replace(run.folder / "constitution.yaml")


def open_run(folder: str | Path, progress: Progress | None = None) -> Run:
    """Open a run folder that exists, with the preset and constitution it was begun with."""
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json")
    fields = dict(manifest["preset"])
    preset = get_preset(fields.pop("name"), **fields)
    return begin_run(folder, preset, progress)


def _begun(folder: Path) -> bool:
    return any(not path.name.endswith((".lock", ".tmp")) for path in folder.iterdir())


def start_run(folder: str | Path | None = None) -> tuple[Run, str]:
    """The run a notebook starts from, and where it comes from, in words.

    In this order: the folder given, the one CAI_LITE_RUN names, the newest finished run in `runs/`
    here or one folder up, the shipped sample (also with CAI_LITE_RUN=sample).
    """
    folder = folder or os.environ.get("CAI_LITE_RUN") or _newest_run() or "sample"
    if folder == "sample":
        return open_run(shipped("data", "samples")), "the shipped sample (no run of yours is used)"
    return open_run(folder), f"your run in {folder}"


def _newest_run() -> Path | None:
    reports = [path for top in (".", "..") for path in Path(top).glob("runs/*/report.json")]
    newest = max(reports, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent if newest else None


def _manifest(preset: Preset, constitution: Constitution) -> dict[str, Any]:
    return {
        "preset": preset.model_dump(mode="json"),
        "constitution": {"name": constitution.name, "sha256": constitution_sha256(constitution)},
        "versions": versions(),
    }


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted["preset"].items():
        begun = found["preset"].get(name, value)  # a field newer than the run changes nothing
        if begun != value:
            what = "preset" if name == "name" else name
            raise InputError(
                f"{folder} was begun with {what} {begun!r}, now it is {value!r}; choose another "
                "--out, or the same settings as before"
            )
    if found["constitution"] != wanted["constitution"]:
        raise InputError(
            f"{folder} was begun with another text of the constitution "
            f"{found['constitution']['name']!r}; choose another --out"
        )


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version()} | found


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a run folder alone; the lock goes with the process, even on kill -9."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another cai-lite is running in {folder}; wait for it, or choose another --out"
            ) from None
        yield


@contextmanager
def stage(run: Run, name: str, *, after: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Time a stage and, when its body ends well, save the summary it filled in.

    `after` are stages that must be finished, and not redone since the stage's first row. Adds
    `seconds`, the sum over all attempts, and `peak_memory_mb` of the last one.
    """
    for earlier in after:
        run.require(earlier)
    summary: dict[str, Any] = {}
    with forgotten_if_bare(run.folder), _attempt(run, name, after):
        forget_peak()
        yield summary
    summary["seconds"] = round(run.origin(name)["seconds"], 1)
    summary["peak_memory_mb"] = peak_memory_mb()
    write_json(run.path(name, "done.json"), summary)


@contextmanager
def forgotten_if_bare(folder: Path) -> Iterator[None]:
    """Forget a run that bad input ends before its first row, so that corrected input can begin."""
    try:
        yield
    except InputError:
        files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
        if {path.name for path in files} <= _BARE:
            _forget_beginning(folder)
        raise


def _forget_beginning(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "run.lock":  # it is held
            path.unlink()


@contextmanager
def _attempt(run: Run, name: str, after: tuple[str, ...]) -> Iterator[None]:
    """Keep in origin.json what a stage is made from and, however the attempt ends, its seconds."""
    _write_beginning(run)  # an attempt with bad input may have taken it away
    run.refuse_stale(name)
    run.path(name, "done.json").unlink(missing_ok=True)  # what is redone is not finished
    path, spent = run.path(name, "origin.json"), _spent(run, name)
    made_from = {"made_from": {earlier: run.mark(earlier) for earlier in after}}
    write_json(path, made_from | {"seconds": spent, "started": time.time()})
    started = time.monotonic()
    try:
        yield
    finally:
        write_json(path, made_from | {"seconds": spent + time.monotonic() - started})


def _spent(run: Run, name: str) -> float:
    """Seconds of a stage's earlier attempts; one that was killed ended with its last file."""
    origin = run.origin(name)
    if "started" not in origin:
        return origin.get("seconds", 0.0)
    files = [path for path in run.path(name).rglob("*") if path.is_file()]
    last = max(path.stat().st_mtime for path in files)
    return origin["seconds"] + max(0.0, last - origin["started"])


def forget_peak() -> None:
    """Let `peak_memory_mb` count from what is held now, and nothing be held that is not in use."""
    gc.collect()  # 4-bit weights refer to themselves
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
        sys.modules["torch"].cuda.reset_peak_memory_stats()
    reset = Path("/proc/self/clear_refs")  # Linux: 5 sets the peak to what is resident now
    if reset.exists():
        reset.write_text("5")


def peak_memory_mb() -> int:
    """Highest memory since the stage began, in MB: of the GPU if there is one, else resident."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_reserved() // 10**6
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) // 1000
    kilobytes = 1000 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1000 * kilobytes)
