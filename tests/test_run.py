"""The run folder: what it refuses, its lock, its seeds and its stages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cai_lite import run as run_module
from cai_lite.constitution import constitution_sha256, load_constitution, save_constitution
from cai_lite.errors import InputError
from cai_lite.files import shipped
from cai_lite.presets import get_preset
from cai_lite.progress import Progress
from cai_lite.records import read_json, write_json
from cai_lite.run import (
    Run,
    begin_run,
    derive_seed,
    locked,
    open_run,
    stage,
    start_run,
    versions,
)


def test_a_run_begins_once_and_opens_again(tmp_path: Path) -> None:
    preset = get_preset("ci", seed=3)
    first = begin_run(tmp_path / "run", preset)
    assert begin_run(tmp_path / "run", preset).constitution == first.constitution
    again = open_run(tmp_path / "run")
    assert again.preset == preset and again.seed("x") == first.seed("x")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["preset"]["seed"] == 3 and manifest["constitution"]["name"] == "harmlessness"
    assert manifest["versions"] == versions() and "torch" in manifest["versions"]


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("cpu", {}, "was begun with preset 'ci', now it is 'cpu'"),
        ("ci", {"model": "some/other"}, "with model 'embedded', now it is 'some/other'"),
        ("ci", {"seed": 7}, "with seed 0, now it is 7"),
        ("ci", {"quantization": "none"}, "with quantization 'nf4', now it is 'none'"),
        ("ci", {"rl_beta": 0.5}, "with rl_beta 0.05, now it is 0.5"),
        ("ci", {"constitution": "sea-captain"}, "with constitution 'harmlessness', now it is 'sea"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    tmp_path: Path, name: str, fields: dict[str, object], told: str
) -> None:
    begin_run(tmp_path / "run", get_preset("ci"))
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(InputError) as error:
        begin_run(tmp_path / "run", get_preset(name, **fields))
    assert told in str(error.value) and "choose another --out" in str(error.value)
    assert str(tmp_path / "run") in str(error.value)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_constitution_whose_text_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    save_constitution(load_constitution("one-principle"), file)
    preset = get_preset("ci", constitution=str(file))
    begin_run(tmp_path / "run", preset)
    file.write_text("# a comment changes nothing\n" + file.read_text())
    begin_run(tmp_path / "run", preset)
    changed = load_constitution(file).model_copy(update={"spirit": "Be otherwise."})
    save_constitution(changed, file)
    with pytest.raises(InputError, match="another text of the constitution 'one-principle'"):
        begin_run(tmp_path / "run", preset)
    with pytest.raises(InputError, match="another text of the constitution"):
        open_run(tmp_path / "run")


def test_the_run_keeps_its_constitution(tmp_path: Path) -> None:
    file, run = tmp_path / "mine.yaml", tmp_path / "run"
    save_constitution(load_constitution("one-principle"), file)
    begun = begin_run(run, get_preset("ci", constitution=str(file)))
    kept = load_constitution(run / "constitution.yaml")
    assert kept == begun.constitution
    hashed = read_json(run / "manifest.json")["constitution"]["sha256"]
    assert hashed == constitution_sha256(kept)
    file.unlink()
    assert open_run(run).constitution == kept
    save_constitution(kept.model_copy(update={"spirit": "Be otherwise."}), run / file.name)
    (run / file.name).replace(run / "constitution.yaml")
    with pytest.raises(InputError, match="another text of the constitution 'one-principle'"):
        open_run(run)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files but no manifest.json"):
        begin_run(tmp_path, get_preset("ci"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_kill_left_before_the_manifest_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    (tmp_path / "manifest.json.123.tmp").write_text('{"pres')
    assert begin_run(tmp_path, get_preset("ci")).preset.name == "ci"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="manifest.json is not there"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest.json is not JSON"):
        open_run(tmp_path)


def test_the_lock_is_held_against_another_process_and_goes_with_it(tmp_path: Path) -> None:
    code = f"""
        import time
        from cai_lite.run import locked
        with locked({str(tmp_path)!r}):
            print("held", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another cai-lite is running in"), locked(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / "run.lock").exists()
    with locked(tmp_path):
        pass


def test_where_a_notebook_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAI_LITE_RUN", raising=False)
    for i, name in enumerate(("old", "new", "named", "given", "unfinished")):
        folder = tmp_path / "runs" / name
        begin_run(folder, get_preset("ci", seed=i))
    for name in ("old", "new"):
        write_json(tmp_path / "runs" / name / "report.json", {})
    os.utime(tmp_path / "runs" / "old" / "report.json", (1, 1))
    assert start_run()[0].folder.name == "new"
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    found, told = start_run()
    assert found.folder.name == "new" and "your run" in told
    monkeypatch.setenv("CAI_LITE_RUN", str(tmp_path / "runs" / "named"))
    assert start_run()[0].folder.name == "named"
    assert start_run(tmp_path / "runs" / "given")[0].folder.name == "given"


def test_without_a_run_the_sample_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = tmp_path / "shipped" / "data" / "samples"
    begin_run(sample, get_preset("ci"))
    monkeypatch.setattr(
        run_module, "shipped", lambda *parts: (tmp_path / "shipped").joinpath(*parts)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAI_LITE_RUN", raising=False)
    monkeypatch.setattr(run_module, "load_constitution", load_constitution)
    found, told = start_run()
    assert found.folder == sample and "sample" in told
    monkeypatch.setenv("CAI_LITE_RUN", "sample")
    assert start_run()[0].folder == sample


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(0, "answer", "weapons-1") == PINNED
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")
    assert derive_seed(0, 1, "x") == derive_seed("0", "1", "x")
    assert len({derive_seed(i) for i in range(1000)}) == 1000
    assert all(0 <= derive_seed(i) < 2**31 for i in range(1000))


PINNED = 1946849405


def test_a_stage_is_done_only_when_its_body_ends_well(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    with pytest.raises(KeyboardInterrupt), stage(run, "critique_revision") as summary:
        summary["n"] = 1
        raise KeyboardInterrupt
    assert run.summary("critique_revision") is None
    with pytest.raises(InputError) as error, stage(run, "sl_cai", after=("critique_revision",)):
        raise AssertionError("the body of a stage whose forerunner is missing must not run")
    assert "no finished stage critique_revision" in str(error.value)
    assert f"cai-lite critique-revision --run {run.folder}" in str(error.value)
    with stage(run, "critique_revision") as summary:
        summary["n"] = 1
    done = run.require("critique_revision")
    assert done["n"] == 1 and done["seconds"] >= 0 and done["peak_memory_mb"] > 0
    with stage(run, "sl_cai", after=("critique_revision",)):
        pass
    assert run.summary("sl_cai") is not None


def finish(run: Run, name: str, *after: str) -> None:
    with stage(run, name, after=after) as summary:
        summary["n"] = 1


def chain(run: Run) -> None:
    finish(run, "critique_revision")
    finish(run, "sl_cai", "critique_revision")
    finish(run, "ai_feedback", "sl_cai")


def test_a_stage_is_not_believed_after_its_forerunner_was_redone(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    chain(run)
    assert run.require("ai_feedback")["n"] == 1
    shutil.rmtree(run.path("critique_revision"))
    assert run.require("ai_feedback")["n"] == 1  # nothing else was made yet
    finish(run, "critique_revision")
    for name in ("sl_cai", "ai_feedback"):  # the first to redo is named, whoever asks
        with pytest.raises(InputError) as error:
            run.require(name)
        assert f"{run.path('sl_cai')} was made from a critique_revision" in str(error.value)
        assert f"delete {run.path('sl_cai')}, then run `cai-lite sl-cai --run" in str(error.value)
    shutil.rmtree(run.path("sl_cai"))
    finish(run, "sl_cai", "critique_revision")
    with pytest.raises(InputError, match="ai_feedback was made from a sl_cai that was redone"):
        finish(run, "preference_model", "ai_feedback")
    shutil.rmtree(run.path("ai_feedback"))
    finish(run, "ai_feedback", "sl_cai")
    finish(run, "preference_model", "ai_feedback")


def test_rows_of_an_older_forerunner_are_not_gone_on_with(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    chain(run)
    for name in ("critique_revision", "sl_cai"):  # its rows stay, only the mark is taken away
        run.path(name, "done.json").unlink()
    finish(run, "critique_revision")
    with pytest.raises(InputError, match="delete .*sl_cai, then run `cai-lite sl-cai"):
        finish(run, "sl_cai", "critique_revision")


def test_a_copied_run_is_believed_and_so_are_stages_of_an_older_version(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    chain(run)
    copy = open_run(shutil.copytree(run.folder, tmp_path / "copy"))
    assert copy.require("ai_feedback") == run.require("ai_feedback")
    for origin in copy.folder.glob("*/origin.json"):
        origin.unlink()
    assert copy.require("ai_feedback")["n"] == 1


def test_a_stage_that_is_run_again_is_not_finished_meanwhile(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    finish(run, "critique_revision")
    with pytest.raises(KeyboardInterrupt), stage(run, "critique_revision"):
        raise KeyboardInterrupt
    assert run.summary("critique_revision") is None


def test_seconds_are_the_sum_over_attempts(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    with pytest.raises(KeyboardInterrupt), stage(run, "critique_revision"):
        time.sleep(0.3)
        raise KeyboardInterrupt
    assert 0.3 <= run.origin("critique_revision")["seconds"] < 5
    rows = run.path("critique_revision", "rows.jsonl")
    rows.touch()  # what an attempt left that was killed 100 s after it began
    now = rows.stat().st_mtime
    killed = {"made_from": {}, "seconds": 10.0, "started": now - 100}
    write_json(run.path("critique_revision", "origin.json"), killed)
    os.utime(run.path("critique_revision", "origin.json"), (now - 100, now - 100))
    finish(run, "critique_revision")
    assert 110 <= run.require("critique_revision")["seconds"] < 115


def test_bad_input_before_the_first_row_leaves_no_run(tmp_path: Path) -> None:
    wrong = begin_run(tmp_path / "run", get_preset("ci", model="no/such"))
    for _ in range(2):  # the same run may be tried again: a hub may come back
        with pytest.raises(InputError, match="no such model"), stage(wrong, "critique_revision"):
            raise InputError("no such model")
        assert not list(wrong.folder.iterdir())
    right = begin_run(tmp_path / "run", get_preset("ci"))
    with pytest.raises(InputError), stage(right, "critique_revision"):
        right.note_model("a" * 64)
        right.path("critique_revision", "rows.jsonl").write_text("{}\n")
        raise InputError("a bad row")
    assert open_run(right.folder).path("critique_revision", "rows.jsonl").exists()


def test_a_bad_model_id_leaves_no_manifest(tmp_path: Path) -> None:
    from cai_lite.engine.models import load_base

    run = begin_run(tmp_path / "run", get_preset("ci", model="nowhere"))
    with pytest.raises(InputError, match="'nowhere'"), stage(run, "critique_revision"):
        load_base(run.preset)
    assert not (run.folder / "manifest.json").exists()
    begin_run(tmp_path / "run", get_preset("ci"))


_TWO_STAGES = """
import sys
from cai_lite.presets import get_preset
from cai_lite.run import begin_run, stage

run = begin_run(sys.argv[1], get_preset("ci"))
with stage(run, "sl_cai") as large:
    block = bytearray(b"x" * 200_000_000)
    del block
with stage(run, "ai_feedback") as small:
    pass
print(large["peak_memory_mb"], small["peak_memory_mb"])
"""


def test_peak_memory_is_that_of_the_stage(tmp_path: Path) -> None:
    # in a process of its own: this one holds memory that other tests freed, and would reuse it
    command = [sys.executable, "-c", _TWO_STAGES, str(tmp_path / "run")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    large, small = map(int, said.split())
    if Path("/proc/self/clear_refs").exists():
        assert large > small + 100


def test_other_weights_are_refused(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    run.note_model("a" * 64)
    run.note_model("a" * 64)
    assert read_json(run.folder / "manifest.json")["model_sha256"] == "a" * 64
    begin_run(tmp_path / "run", get_preset("ci"))
    with pytest.raises(InputError, match=r"SHA-256 aaaaaaaaaaaa…, the model now has bbbbbbbbbbbb…"):
        run.note_model("b" * 64)
    assert read_json(run.folder / "manifest.json")["model_sha256"] == "a" * 64


def test_the_shipped_files_are_found() -> None:
    assert shipped("data", "red_team.jsonl").is_file()
    assert shipped("constitutions").is_dir()


def test_progress_speaks_on_stderr_alone_and_only_when_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for show in (False, True):
        progress = Progress(show)
        progress.say("hello")
        with progress.bar("rows of something", 3) as advance:
            advance(3)
        out, err = capsys.readouterr()
        assert out == "" and ("hello" in err and "3/3" in err) == show


def test_a_manifest_with_an_unknown_field_is_an_input_error(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    manifest = read_json(run.folder / "manifest.json")
    manifest["preset"]["from_the_future"] = 1
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="'from_the_future' is unknown"):
        open_run(run.folder)
