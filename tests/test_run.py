"""The run folder: what it refuses, its lock, its seeds and its stages."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cai_lite import run as run_module
from cai_lite.constitution import load_constitution, save_constitution
from cai_lite.errors import InputError
from cai_lite.files import shipped
from cai_lite.presets import get_preset
from cai_lite.progress import Progress
from cai_lite.records import read_json, write_json
from cai_lite.run import begin_run, derive_seed, locked, open_run, stage, start_run, versions


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
    import os

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


def test_peak_memory_is_that_of_the_stage(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", get_preset("ci"))
    with stage(run, "sl_cai") as large:
        block = bytearray(b"x" * 200_000_000)
        del block
    with stage(run, "ai_feedback") as small:
        pass
    if Path("/proc/self/clear_refs").exists():
        assert large["peak_memory_mb"] > small["peak_memory_mb"] + 100


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
