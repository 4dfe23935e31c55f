"""The command line, in this process and on the tiny model, except where start-up is timed."""

import argparse
import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import TINY_SIZES

import cai_lite
from cai_lite import cli
from cai_lite.cli import main

pytestmark = pytest.mark.slow

COMMANDS = (
    "run",
    "critique-revision",
    "sl-cai",
    "ai-feedback",
    "preference-model",
    "rl-cai",
    "evaluation",
    "compare",
    "judge",
    "iterate",
    "constitution",
    "hhh",
    "lab",
    "fetch-paper",
)


def tiny_options(model, out):
    sizes = [part for item in TINY_SIZES.items() for part in ("--set", "{}={}".format(*item))]
    return ["--preset", "ci", "--model", str(model), "--quantization", "none", *sizes] + (
        ["--out", str(out)] if out else []
    )


@pytest.fixture(scope="module")
def one_thread():
    """The tiny model's sums are too short to share: threads would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory, one_thread, tiny_stages):
    """(folder, what stdout had, what stderr had) of a whole run with --json."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["run", *tiny_options(tiny_model, folder), "--json"]) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def fails(capsys, argv, *words):
    """The command exits with 2, says one sentence with these words, and nothing on stdout."""
    assert main([str(part) for part in argv]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    last = seen.err.splitlines()[-1]
    assert last.startswith("cai-lite: ")
    assert "Traceback" not in seen.err
    for word in words:
        assert str(word) in last, last


# ---- the whole run ----------------------------------------------------------------------------


def test_run_prints_one_json_object_with_every_field(finished):
    folder, out, _ = finished
    report = json.loads(out)
    assert json.loads((folder / "report.json").read_text()).items() <= report.items()
    assert report["preset"] == "ci" and report["quantization"] == "none" and report["seed"] == 0
    assert len(report["model_sha256"]) == 64 and report["versions"]["torch"]
    wanted = {
        "critique_revision": {
            "n_prompts",
            "n_revisions",
            "rounds",
            "score_by_round",
            "dropped",
            "faults",
            "n_candidates",
        },  # fmt: skip
        "sl_cai": {"n_rows", "loss_first", "loss_last"},
        "ai_feedback": {"n_pairs", "method", "position_bias"},
        "preference_model": {"n_train", "shares", "n_eval", "accuracy", "accuracy_ci", "ece"},
        "rl_cai": {"algorithm", "steps", "stopped", "reward_first", "reward_last", "kl_last"},
        "evaluation": {"models", "differences", "classifier"},
    }
    for stage, fields in wanted.items():
        assert fields <= report["stages"][stage].keys()
        assert report["seconds"][stage] >= 0 and report["peak_memory_mb"][stage] > 0
    assert report["stages"]["evaluation"]["models"].keys() == {"base", "sl_cai", "rl_cai"}
    for measures in report["stages"]["evaluation"]["models"].values():
        for name in ("harmlessness", "helpfulness"):
            low, high = measures[f"{name}_ci"]
            assert 0 <= low <= measures[name] <= high <= 1
        for name in ("helps", "explains", "over_refusal", "evasive", "broken", "boilerplate"):
            assert 0 <= measures[name] <= 1


def test_run_says_each_stage_and_its_time(finished):
    err = finished[2]
    for number, name in enumerate(COMMANDS[1:7], 1):
        assert f"stage {number} of 6, {name}: finished in" in err


def test_run_again_skips_finished_stages_and_ends_with_table_and_paths(
    finished, tiny_model, capsys
):
    folder = finished[0]
    before = (folder / "evaluation" / "done.json").stat().st_mtime_ns
    assert main(["run", *tiny_options(tiny_model, folder)]) == 0
    seen = capsys.readouterr()
    assert seen.err.count("already finished") == 6
    assert (folder / "evaluation" / "done.json").stat().st_mtime_ns == before
    assert "RL-CAI" in seen.out and "harmlessness" in seen.out
    paths = seen.out.splitlines()[-2:]
    assert paths == [str(folder / "report.json"), str(folder / "report.html")]


def test_a_stage_that_computes_prints_json_alone(copy, capfd):
    (copy / "evaluation" / "done.json").unlink()
    assert main(["evaluation", "--run", str(copy), "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["stage"] == "evaluation" and found["models"].keys() == {"base", "sl_cai", "rl_cai"}
    assert "Map" not in err and "Failed to load" not in err


def test_training_prints_json_alone(copy, capfd):
    shutil.rmtree(copy / "sl_cai")
    assert main(["sl-cai", "--run", str(copy), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["n_rows"] > 0
    assert "Map" not in err and "Tokenizing" not in err and "'loss'" not in err


def test_a_finished_stage_is_shown_and_not_run(finished, capsys):
    assert main(["ai-feedback", "--run", str(finished[0])]) == 0
    seen = capsys.readouterr()
    assert "already finished" in seen.err and "n_pairs: " in seen.out


def test_newest_run_is_the_default(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], tmp_path / "runs" / "old")
    shutil.copytree(finished[0], tmp_path / "runs" / "new")
    for path in (tmp_path / "runs" / "old").iterdir():
        os.utime(path, (1, 1))
    assert main(["rl-cai", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == os.path.join("runs", "new")


# ---- compare ----------------------------------------------------------------------------------


def test_compare_answers_with_every_model(finished, capfd):
    assert main(["compare", "Hello [red]there", "--run", str(finished[0]), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["prompt"] == "Hello [red]there"
    assert list(found["answers"]) == ["base", "sl_cai", "rl_cai"]


def test_compare_works_with_the_models_so_far(copy, capsys):
    (copy / "rl_cai" / "done.json").unlink()
    assert main(["compare", "[bold]Hello", "--run", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "[bold]Hello" in out and "SL-CAI" in out and "RL-CAI" not in out


def test_compare_refuses_an_empty_prompt(finished, capsys):
    fails(capsys, ["compare", "  ", "--run", finished[0]], "PROMPT is empty")


def test_constitutions_are_compared_on_a_runs_pairs(finished, capfd):
    command = ["constitution", "compare", "one-principle", "sea-captain", "--run", str(finished[0])]
    assert main([*command, "--limit", "3", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["n"] == 3 and found["constitutions"] == ["one-principle", "sea-captain"]
    assert main([*command, "--limit", "3"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "of n = 3 pairs" in out and "sea-picture" in out and "% of the pairs" in out
    fails(capfd, [*command, "--limit", "0"], "--limit is 0", "1 pair or more")


def test_principles_that_pull_apart_are_shown_by_their_sides(capsys):
    torn = [
        {"prompt": "Lie to [b]her?", "a": "Yes", "b": "No", "p_a": [0.9, 0.2, 0.6]},
        {"prompt": "All agree", "a": "Yes", "b": "No", "p_a": [0.9, 0.8, 0.7]},
    ]
    cli._show_principles("mi\x1bne", {"kind": 0.5, "honest": 1.0, "brief": 0.0}, torn)
    out = " ".join(capsys.readouterr().out.split())
    assert "mine" in out and "50% of the pairs" in out and "Lie to [b]her?" in out
    assert "kind, brief" in out and "honest" in out and "All agree" not in out
    cli._show_principles("one", {"kind": 0.5}, [torn[0] | {"p_a": [0.9]}])
    assert "torn" not in capsys.readouterr().out


def test_every_adapter_of_a_run_has_its_card(finished):
    for stage in ("sl_cai", "preference_model", "rl_cai"):
        assert "## Limits" in (finished[0] / stage / "adapter" / "README.md").read_text()


def test_what_a_stage_is_given_beside_the_run_is_checked(finished, capfd, tmp_path):
    run = ["--run", str(finished[0])]
    fails(capfd, ["evaluation", *run, "--also", "mine"], "--also takes NAME=DIR, found 'mine'")
    wrong = ["evaluation", *run, "--also", f"mine={tmp_path}"]
    fails(capfd, wrong, "adapter_config.json is not there")
    fails(capfd, ["judge", *run, "--labels", str(tmp_path / "no.jsonl")], "no.jsonl has no labels")


def test_a_judge_without_an_address_says_how_to_name_one(finished, capfd, monkeypatch):
    monkeypatch.delenv("CAI_LITE_JUDGE_URL", raising=False)
    fails(capfd, ["judge", "--run", finished[0]], "CAI_LITE_JUDGE_URL is not set")


def test_terminal_codes_are_not_printed():
    assert cli._printable("a\x1b[31mb\r\nc") == "a[31mb\nc"


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra, words",
    [
        (["--preset", "cpu"], ("preset", "cpu", "--out")),
        (["--constitution", "one-principle"], ("constitution", "one-principle")),
        (["--seed", "7"], ("seed", "7")),
        (["--quantization", "nf4"], ("quantization",)),
    ],
)
def test_a_run_folder_of_other_settings(finished, tiny_model, capsys, extra, words):
    fails(capsys, ["run", *tiny_options(tiny_model, finished[0]), *extra], finished[0], *words)


def test_a_run_folder_of_another_model(finished, tiny_model, tmp_path, capsys):
    other = shutil.copytree(tiny_model, tmp_path / "model")
    fails(capsys, ["run", *tiny_options(other, finished[0])], "model", other)


def test_weights_that_changed_since_the_run_began(copy, tmp_path, tiny_model, capsys):
    (copy / "evaluation" / "done.json").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"model_sha256": "0" * 64}))
    fails(capsys, ["run", *tiny_options(tiny_model, copy)], "weights", "000000000000")


def test_two_runs_into_one_folder(copy, tiny_model, capsys):
    with (copy / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(capsys, ["run", *tiny_options(tiny_model, copy)], "another cai-lite", copy)
        fails(capsys, ["evaluation", "--run", copy], "another cai-lite", copy)
    assert main(["evaluation", "--run", str(copy)]) == 0


@pytest.mark.parametrize(
    "extra, words",
    [
        (["--set", "nonsense=1"], ("'nonsense'", "rl_steps")),
        (["--set", "rounds=many"], ("'rounds'", "'many'")),
        (["--set", "rounds"], ("--set", "field=value", "'rounds'")),
        (["--set", "name=x"], ("'name'",)),
        (["--seed", "1", "--set", "seed=2"], ("'seed'", "twice")),
        (["--seed", "-1"], ("'seed'",)),
        (["--constitution", "missing.yaml"], ("missing.yaml",)),
    ],
)
def test_options_that_are_wrong_make_no_folder(tiny_model, tmp_path, capsys, extra, words):
    out = tmp_path / "out"
    options = ["run", "--preset", "ci", "--model", tiny_model, "--out", out, *extra]
    fails(capsys, options, *words)
    assert not out.exists()


def test_a_model_that_is_wrong_leaves_no_run_begun(tiny_model, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    out = tmp_path / "out"
    fails(capsys, ["run", *tiny_options(tmp_path / "model", out)], "safetensors")
    wrong = [*tiny_options(tiny_model, out), "--set", "model_sha256=" + "1" * 64]
    fails(capsys, ["run", *wrong], "SHA-256", "1" * 64)
    fails(capsys, ["run", *tiny_options("no/such/model", out)], "no/such/model")
    assert not (out / "manifest.json").exists()


def test_a_cuda_preset_without_cuda(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"
    fails(capsys, ["run", "--preset", "t4", "--out", out], "CUDA", "t4", "--preset cpu")
    assert not (out / "manifest.json").exists()


def test_a_folder_with_foreign_files(tmp_path, tiny_model, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    fails(capsys, ["run", *tiny_options(tiny_model, tmp_path)], tmp_path, "manifest.json")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_out_that_is_a_file(tmp_path, tiny_model, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, ["run", *tiny_options(tiny_model, tmp_path / "file")], tmp_path / "file", "--out")


def test_no_run_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["sl-cai"], "no run in runs/", "--run")
    fails(capsys, ["compare", "Hello", "--run", "elsewhere"], "elsewhere", "manifest.json")


def test_a_stage_before_its_time(copy, capsys):
    (copy / "ai_feedback" / "done.json").unlink()
    (copy / "preference_model" / "done.json").unlink()
    fails(capsys, ["preference-model", "--run", copy], "cai-lite ai-feedback --run")


def test_critique_revision_begins_a_run_or_goes_on_with_one(finished, tiny_model, capsys):
    folder = finished[0]
    begin = ["critique-revision", *tiny_options(tiny_model, folder)]
    assert main([*begin, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_prompts"] == TINY_SIZES["red_team_prompts"]
    fails(capsys, [*begin, "--run", folder], "--run", "--out")


def test_default_folder_is_named_after_the_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cai_lite.presets.choose_preset", lambda: ("ci", "a test chose it"))
    fails(capsys, ["run", "--model", "nowhere"], "'nowhere'")
    assert (tmp_path / "runs" / "ci" / "run.lock").exists()


def test_auto_says_why(monkeypatch, capsys):
    monkeypatch.setattr("cai_lite.presets.choose_preset", lambda: ("ci", "a test chose it"))
    fails(capsys, ["run", "--set", "nonsense=1"], "nonsense")
    options = argparse.Namespace(
        preset=None, constitution=None, model=None, quantization=None, seed=None, settings=[]
    )
    assert cli._preset(options, cli._progress()).name == "ci"
    assert "preset ci: a test chose it" in capsys.readouterr().err


# ---- interruptions ----------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on_and_frees_the_folder(copy, tiny_model, monkeypatch, capsys):
    def interrupted(run):
        raise KeyboardInterrupt

    (copy / "evaluation" / "done.json").unlink()
    command = ["run", *tiny_options(tiny_model, copy)]
    with monkeypatch.context() as patch:
        patch.setattr("cai_lite.stages.evaluation.evaluation", interrupted)
        assert main(command) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert main(command) == 0


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl"),
        RuntimeError("Error: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk(copy, monkeypatch, capsys, error):
    def full(run):
        raise error

    (copy / "evaluation" / "done.json").unlink()
    monkeypatch.setattr("cai_lite.stages.evaluation.evaluation", full)
    fails(capsys, ["evaluation", "--run", copy], "the disk is full")


def test_a_bug_is_not_hidden(copy, monkeypatch):
    def wrong(run):
        raise ValueError("a bug")

    (copy / "evaluation" / "done.json").unlink()
    monkeypatch.setattr("cai_lite.stages.evaluation.evaluation", wrong)
    with pytest.raises(ValueError, match="a bug"):
        main(["evaluation", "--run", str(copy)])


# ---- the other commands -----------------------------------------------------------------------


def test_hhh_passes_its_options_on(tmp_path, tiny_model, monkeypatch, capsys):
    seen = {}

    def fake(preset, file, methods, limit, progress):
        seen.update(preset=preset, file=file, methods=methods, limit=limit)
        one = {"accuracy": 0.5, "ci": [0.25, 0.75], "n": 2}
        return {"file": str(file), "n": 2, "methods": {"contrast": one}}

    monkeypatch.setattr("cai_lite.stages.hhh.hhh", fake)
    file = tmp_path / "hhh.jsonl"
    command = ["hhh", "--file", str(file), "--method", "contrast", "--limit", "2"]
    assert main([*command, *tiny_options(tiny_model, None)]) == 0
    assert (seen["file"], seen["methods"], seen["limit"]) == (file, ["contrast"], 2)
    assert seen["preset"].model == str(tiny_model)
    assert "0.50 [0.25, 0.75]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "read_as"),
    [([], "none"), (["--quantization", "nf4"], "nf4"), (["--set", "quantization=nf4"], "nf4")],
)
def test_hhh_reads_the_embedded_model_whole(options, read_as, tmp_path, monkeypatch, capsys):
    seen = []

    def fake(preset, *_):
        seen.append(preset.quantization)
        return {"file": "", "n": 0, "methods": {}}

    monkeypatch.setattr("cai_lite.stages.hhh.hhh", fake)
    command = ["hhh", "--file", str(tmp_path / "hhh.jsonl"), "--preset", "cpu", "--json"]
    assert main([*command, *options]) == 0
    assert seen == [read_as]


def test_hhh_without_the_papers_files(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CAI_LITE_PAPER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fails(capsys, ["hhh", "--preset", "ci"], "fetch-paper", "--file")


def test_lab_becomes_jupyterlab(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("cai_lite.files.shipped", lambda *parts: tmp_path)
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    fails(capsys, ["lab"], "no notebooks")
    (tmp_path / "00.ipynb").write_text("{}")
    command = [sys.executable, "-m", "jupyterlab", str(tmp_path)]
    for user, more in ((1000, []), (0, ["--allow-root"])):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        main(["lab"])
        assert calls.pop() == (sys.executable, [*command, *more])


def test_fetch_paper(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cai_lite.paper.fetch_paper", lambda folder: [folder / "one.json"])
    assert main(["fetch-paper", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.json'}\n"
    monkeypatch.setattr("cai_lite.paper.fetch_paper", lambda folder: [])
    assert main(["fetch-paper", "--to", str(tmp_path)]) == 0
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: cai-lite {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["run", "--preset", "huge"]])
def test_usage_errors_exit_with_2(argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


# ---- a quick start ----------------------------------------------------------------------------


def seconds(*command):
    """The shortest of three runs, so that a busy machine does not fail a quick start."""
    taken = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.monotonic() - started)
    return min(taken)


def test_help_and_import_are_quick():
    assert seconds(sys.executable, "-m", "cai_lite.cli", "--help") < 1.4
    assert seconds(sys.executable, "-c", "import cai_lite, cai_lite.cli") < 0.6


def test_importing_loads_no_heavy_library():
    heavy = "torch transformers matplotlib pydantic yaml numpy rich datasets jinja2".split()
    code = f"import sys, cai_lite.cli; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    for name in cai_lite.__all__:
        assert getattr(cai_lite, name) is not None
    assert set(cai_lite.__all__) <= set(dir(cai_lite))
    with pytest.raises(AttributeError, match="nonsense"):
        cai_lite.nonsense  # noqa: B018
