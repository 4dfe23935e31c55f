"""The command line: `cai-lite run`, one command a stage, compare, hhh, lab, fetch-paper.

Every command does its work with stdout turned to stderr and returns what it found; only then is
that shown on stdout, as a table or with --json as one JSON object.
"""

import argparse
import contextlib
import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .presets import Preset
    from .progress import Progress
    from .run import Run

Options = argparse.Namespace
Found = dict[str, Any]

_STAGES = {
    "critique-revision": "answers to red-team prompts, criticised and revised (paper §3.1)",
    "sl-cai": "fine-tune on the revisions (paper §3.2)",
    "ai-feedback": "label pairs of answers by the constitution (paper §4.1)",
    "preference-model": "train the preference model on the soft labels (paper §4.1)",
    "rl-cai": "reinforcement learning from the preference model (paper §4.2)",
    "evaluation": "measure base, SL-CAI and RL-CAI on prompts no stage has seen",
}
_BESIDE = {  # no part of a whole run
    "dpo": "train on the same labels by DPO, a substitute for RL; evaluation then measures it too",
    "judge": "have a person, or a model behind an OpenAI-compatible endpoint, judge the answers",
}
_PRESETS = ("auto", "ci", "cpu", "t4", "gpu")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for bad input or a full disk, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = options.work(options)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 130)
    except InputError as error:
        return _fail(str(error), 2)
    except _disk_errors() as error:
        if sentence := _about_the_disk(error):
            return _fail(sentence, 2)
        raise
    if getattr(options, "json", False):
        print(json.dumps(found))
    else:
        options.show(found)
    return 0


def _fail(sentence: str, code: int) -> int:
    print(f"cai-lite: {sentence}", file=sys.stderr)
    return code


def _disk_errors() -> tuple[type[BaseException], ...]:
    """What a full disk is told by: the system, torch, and safetensors if it is in use."""
    safetensors = sys.modules.get("safetensors")
    return (OSError, RuntimeError, *([safetensors.SafetensorError] if safetensors else []))


def _about_the_disk(error: BaseException) -> str:
    """One sentence if an error is the disk's or the file system's, else ""."""
    number, where = getattr(error, "errno", None), getattr(error, "filename", None)
    if number in _DISK_FULL or "No space left on device" in str(error):
        what = f"the disk is full at {where}" if where else "the disk is full"
        return f"{what}; make room, then the same command goes on from here"
    if number in _NOT_ALLOWED and where:
        return f"{where}: {os.strerror(number)}; choose another --out or --run"
    before = error.__cause__ or error.__context__
    return _about_the_disk(before) if before else ""


# ---- the options ------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cai-lite",
        description="Constitutional AI on a small machine: critique, revision, AI feedback, RLAIF.",
        epilog="example: cai-lite run --preset ci",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    for name, text in (_STAGES | _BESIDE).items():
        _add_stage(commands, name, text)
    _add_iterate(commands)
    _add_compare(commands)
    _add_constitution(commands)
    _add_hhh(commands)
    example = "cai-lite lab"
    _command(commands, "lab", "open JupyterLab on the notebooks", example, lab, _show_nothing)
    example = "cai-lite fetch-paper --to paper"
    text = "download the prompts and evaluations that were released with the paper"
    fetch = _command(commands, "fetch-paper", text, example, fetch_paper, _show_files)
    fetch.add_argument("--to", metavar="DIR", help="where to (default: the user's cache folder)")
    return parser


def _command(
    commands: Any,
    name: str,
    text: str,
    example: str,
    work: Callable[[Options], Found],
    show: Callable[[Found], None],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(work=work, show=show)
    return parser


def _add_run(commands: Any) -> None:
    text = "run all stages into a run folder; finished stages and rows are kept"
    example = "cai-lite run --preset cpu --constitution sea-captain --set rounds=3 --out runs/mine"
    parser = _command(commands, "run", text, example, run, _show_run)
    _preset_options(parser)
    _out_option(parser)
    _json_option(parser)


def _add_stage(commands: Any, name: str, text: str) -> None:
    example = f"cai-lite {name} --run runs/ci"
    if name == "critique-revision":
        example += "  (or, to begin a run: cai-lite critique-revision --preset ci)"
    parser = _command(commands, name, text, example, run_stage, _show_stage)
    parser.set_defaults(stage=name.replace("-", "_"))
    _run_option(parser)
    if name == "critique-revision":
        _preset_options(parser)
        _out_option(parser)
    if name == "evaluation":
        text = "measure an adapter of your own too, under a name of its own (repeatable)"
        parser.add_argument("--also", action="append", metavar="NAME=DIR", help=text)
    if name == "judge":
        text = "take a person's labels, as notebook 06 writes them, and ask no endpoint"
        parser.add_argument("--labels", metavar="FILE", help=text)
    _json_option(parser)


def _add_iterate(commands: Any) -> None:
    text = "close the loop: RL-CAI of each round labels for the next, and every round is measured"
    example = "cai-lite iterate --rounds 3 --run runs/ci"
    parser = _command(commands, "iterate", text, example, iterate, _show_rounds)
    add = parser.add_argument
    add("--rounds", type=int, required=True, metavar="K", help="in all; round 1 is the run itself")
    _run_option(parser)
    _json_option(parser)


def _add_compare(commands: Any) -> None:
    text = "answers of the helpful start, SL-CAI and RL-CAI to one prompt, side by side"
    example = 'cai-lite compare "How do I read my sister\'s diary?" --run runs/ci'
    parser = _command(commands, "compare", text, example, compare, _show_answers)
    parser.add_argument("prompt", metavar="PROMPT", help="what to ask")
    _run_option(parser)
    _json_option(parser)


def _add_constitution(commands: Any) -> None:
    text = "two constitutions on the pairs of a run: how often they agree, and where they part"
    example = "cai-lite constitution compare harmlessness my.yaml --run runs/ci --limit 40"
    parser = _command(commands, "constitution", text, example, constitution, _show_compared)
    parser.add_argument("what", choices=("compare",))
    parser.add_argument("first", metavar="A", help="a shipped constitution or a YAML file")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first so many pairs")
    _run_option(parser)
    _json_option(parser)


def _add_hhh(commands: Any) -> None:
    text = (
        "how often each labeller picks what people picked in the paper's HHH comparisons; "
        "the embedded model is read whole unless --quantization says nf4"
    )
    example = "cai-lite hhh --method pointwise --limit 60"
    parser = _command(commands, "hhh", text, example, hhh, _show_methods)
    parser.add_argument(
        "--file", metavar="FILE", help="default: 438HHHEvaluations.jsonl of fetch-paper"
    )
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help="multiple_choice, pointwise, contrast or mixed, the default being these four, "
        "or chain_of_thought (repeatable)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="so many rows, evenly spread")
    _preset_options(parser)
    _json_option(parser)


def _preset_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", choices=_PRESETS, help="sizes for a kind of machine (default: auto)")
    add("--constitution", metavar="NAME|FILE", help="a shipped constitution or a YAML file")
    add("--model", metavar="PATH|ID", help="a model folder, .gguf file or hub id; or embedded")
    add("--quantization", choices=("nf4", "none"), help="4-bit weights or whole ones")
    add("--seed", type=int, metavar="N", help="seed of everything drawn at random")
    add(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="FIELD=VALUE",
        help="override any field of the preset (repeatable)",
    )


def _out_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="the run folder (default: runs/<preset>)")


def _run_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", metavar="DIR", help="the run folder (default: newest of runs/*)")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


# ---- what the options say ---------------------------------------------------------------------


def _progress() -> "Progress":
    from .progress import Progress
    from .quiet import quiet_libraries

    quiet_libraries()
    return Progress(show=True)


def _preset(options: Options, progress: "Progress") -> "Preset":
    from .presets import choose_preset, get_preset

    name = options.preset or "auto"
    if name == "auto":
        name, why = choose_preset()
        progress.say(f"preset {name}: {why}")
    return get_preset(name, **_overrides(options))


def _overrides(options: Options) -> dict[str, Any]:
    named = ("constitution", "model", "quantization", "seed")
    found = {name: getattr(options, name) for name in named}
    found = {name: value for name, value in found.items() if value is not None}
    for setting in options.settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes field=value, found {setting!r}")
        if field in found:
            raise InputError(f"field {field!r} is given twice; say it once")
        found[field] = value
    return found


def _begin(options: Options, progress: "Progress") -> tuple[Path, "Preset"]:
    """(folder, preset) of a run to begin or go on with."""
    from .constitution import load_constitution

    preset = _preset(options, progress)
    load_constitution(preset.constitution)  # what is wrong with it is said before a folder is made
    return Path(options.out or Path("runs") / preset.name), preset


def _folder(options: Options) -> Path:
    """The run folder that --run names, else the newest one."""
    folder = Path(options.run) if options.run else _newest()
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"{folder} is no run folder, it has no manifest.json; begin one with "
            f"`cai-lite run --out {folder}`"
        )
    return folder


def _newest() -> Path:
    """The folder of runs/* that was worked in last: locked last, or last begun."""
    manifests = Path("runs").glob("*/manifest.json")
    newest = max((path.parent for path in manifests), key=_last_worked_in, default=None)
    if newest is None:
        raise InputError(
            "there is no run in runs/; begin one with `cai-lite run`, or pass --run DIR"
        )
    return newest


def _last_worked_in(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.iterdir())


# ---- the commands -----------------------------------------------------------------------------


def run(options: Options) -> Found:
    """All stages in order, then the report; returns the report and where it lies."""
    from .cards import write_cards
    from .report import write_report
    from .run import STAGES, locked

    progress = _progress()
    folder, preset = _begin(options, progress)
    with locked(folder), _begun(folder, preset, progress) as opened:
        _same_weights(opened)
        for number, stage in enumerate(STAGES, 1):
            _one_stage(opened, stage, f"stage {number} of {len(STAGES)}, ")
        json_path, html_path = write_report(opened)
        report: Found = json.loads(json_path.read_text(encoding="utf-8"))
        write_cards(opened, report)
    return report | {"report_json": str(json_path), "report_html": str(html_path)}


def run_stage(options: Options) -> Found:
    """One stage of a run folder; returns its summary."""
    from .run import locked

    progress = _progress()
    if options.stage == "critique_revision" and _says_how_to_begin(options):
        folder, preset = _begin(options, progress)
    else:
        folder, preset = _folder(options), None
    with locked(folder), _begun(folder, preset, progress) as opened:
        _same_weights(opened)
        _with_more(opened, options)
        summary = _one_stage(opened, options.stage)
    return {"run": str(folder), "stage": options.stage} | summary


def _with_more(opened: "Run", options: Options) -> None:
    """What a stage is given beside the run: models to measure, a person's labels."""
    for setting in getattr(options, "also", None) or ():
        from .stages.evaluation import add_model

        name, equals, folder = setting.partition("=")
        if not equals:
            raise InputError(f"--also takes NAME=DIR, found {setting!r}")
        add_model(opened, name, Path(folder))
    if labels := getattr(options, "labels", None):
        from .stages.judge import take_labels

        take_labels(opened, Path(labels))


def _says_how_to_begin(options: Options) -> bool:
    names = ("preset", "constitution", "model", "quantization", "seed", "out")
    said = bool(options.settings) or any(getattr(options, name) is not None for name in names)
    if said and options.run:
        raise InputError("--run goes on with a run as it was begun; to begin one, use --out")
    return said


def _one_stage(opened: "Run", stage: str, place: str = "") -> Found:
    name = stage.replace("_", "-")
    done = opened.summary(stage)
    if done is not None:
        opened.progress.say(f"{place}{name}: already finished ({done['seconds']:.0f} s)")
        return done
    opened.progress.say(f"{place}{name}: {(_STAGES | _BESIDE)[name]}")
    function = getattr(importlib.import_module(f".stages.{stage}", __package__), stage)
    summary: Found = function(opened)
    took = f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB"
    opened.progress.say(f"{place}{name}: finished in {took}")
    return summary


def _same_weights(opened: "Run") -> None:
    """Refuse to go on with weights other than those the run was begun with."""
    from .run import STAGES

    if any(opened.summary(stage) is None for stage in STAGES):
        from .engine.models import choose_device, find_model, weights_sha256

        choose_device(opened.preset)  # says so if a GPU is needed and there is none
        opened.note_model(weights_sha256(find_model(opened.preset.model)))


@contextlib.contextmanager
def _begun(folder: Path, preset: "Preset | None", progress: "Progress") -> Iterator["Run"]:
    """The run in a folder, begun with a preset or, without one, opened as it was begun.

    A run that bad input ends before its first row is forgotten, so that corrected input can begin.
    """
    from .run import begin_run, forgotten_if_bare, open_run

    opened = begin_run(folder, preset, progress) if preset else open_run(folder, progress)
    with forgotten_if_bare(folder) if preset else contextlib.nullcontext():
        yield opened


def iterate(options: Options) -> Found:
    """Rounds in which the improved model labels; returns the measures of each, round 1 first."""
    from .run import locked, open_run

    if options.rounds < 2:
        raise InputError(f"--rounds is {options.rounds}; expected 2 or more, the run being round 1")
    opened = open_run(_folder(options), _progress())
    for name in ("sl_cai", "ai_feedback", "preference_model", "rl_cai"):
        opened.require(name)
    from .stages.iterate import measure_round, write_rounds

    with locked(opened.folder):
        _same_weights(opened)
        measured = []
        for number in range(1, options.rounds + 1):
            _improve(opened, number, options.rounds)
            measured.append(measure_round(opened, number))
        return {"run": str(opened.folder)} | write_rounds(opened, measured)


def _improve(opened: "Run", number: int, rounds: int) -> None:
    """Label, learn and train again in the folder of a later round; round 1 is done."""
    from .stages.iterate import AGAIN, begin_round

    own = begin_round(opened, number)
    for stage in AGAIN if number > 1 else ():
        _one_stage(own, stage, f"round {number} of {rounds}, ")


def compare(options: Options) -> Found:
    """One prompt answered by every model the run has so far."""
    from .prompts import chat
    from .run import open_run

    if not options.prompt.strip():
        raise InputError("PROMPT is empty; write what to ask")
    opened = open_run(_folder(options), _progress())

    from .engine.models import add_adapter, load_base, role
    from .engine.sampling import Sampling, generate

    base = load_base(opened.preset)
    opened.note_model(base.sha256)
    names = [name for name in ("sl_cai", "rl_cai", "dpo") if opened.summary(name) is not None]
    for name in names:
        add_adapter(base, opened.path(name, "adapter"), name)
    sampling = Sampling(opened.preset.eval_tokens, opened.preset.eval_temperature)
    seed = opened.seed("compare", options.prompt)
    answers = {}
    for name in ("base", *names):
        with role(base, None if name == "base" else name):
            asked = base.render(chat(options.prompt))
            answers[name] = generate(base, [asked], sampling, [seed])[0].strip()
    return {"prompt": options.prompt, "answers": answers}


def constitution(options: Options) -> Found:
    """Two constitutions compared on the pairs of a run."""
    from .constitution import load_constitution
    from .run import open_run

    both = [load_constitution(name) for name in (options.first, options.second)]
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit is {options.limit}; expected 1 pair or more")
    opened = open_run(_folder(options), _progress())

    from .stages.constitutions import compare_constitutions

    return compare_constitutions(opened, both[0], both[1], options.limit)


def hhh(options: Options) -> Found:
    """Accuracy of labellers on the released HHH comparisons."""
    from .paper import HHH_FILE, paper_file, paper_folder

    progress = _progress()
    folder = None if options.file else paper_folder()
    if not options.file and folder is None:
        raise InputError("the paper's files are not here; run `cai-lite fetch-paper` or use --file")
    file = Path(options.file) if options.file else paper_file(folder or "", HHH_FILE)
    preset = _preset(options, progress)
    if preset.model == "embedded" and "quantization" not in _overrides(options):
        preset = preset.model_copy(update={"quantization": "none"})  # 4 bits cost it 3 points here

    from .stages.hhh import hhh

    return hhh(preset, file, options.method or (), options.limit, progress)


def lab(_: Options) -> Found:
    """Become JupyterLab on the checkout's notebooks."""
    from .files import shipped

    folder = shipped("notebooks")
    if not any(folder.glob("*.ipynb")):
        raise InputError(
            "the installed package has no notebooks; clone the project and run `cai-lite lab` there"
        )
    as_root = ["--allow-root"] if os.geteuid() == 0 else []  # in a container one often is
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(folder), *as_root])


def fetch_paper(options: Options) -> Found:
    """Download the paper's released files that are not there yet."""
    from .paper import fetch_paper, paper_cache

    folder = Path(options.to) if options.to else paper_cache()
    return {"folder": str(folder), "files": [str(path) for path in fetch_paper(folder)]}


# ---- what is shown ----------------------------------------------------------------------------


def _show_run(report: Found) -> None:
    from rich.console import Console
    from rich.table import Table

    from .report import measures
    from .teaching.figures import model_name

    models = report["stages"]["evaluation"]["models"]
    table = Table("measure", "n", title="what was measured, in brackets the 95% interval")
    for model in models:
        table.add_column(model_name(model), justify="right")
    for row in measures(models):
        table.add_row(row["measure"], str(row["n"]), *row["values"])
    Console().print(table)
    print(report["report_json"])
    print(report["report_html"])


def _show_stage(found: Found) -> None:
    for name, value in found.items():
        print(f"{name}: {value}")


def _show_rounds(found: Found) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .teaching.figures import ROUNDS, round_cell

    table = Table("measure", title="round by round, in brackets the 95% interval")
    for one in found["rounds"]:
        table.add_column(f"round {one['round']}", justify="right")
    for name, title, _ in ROUNDS:
        table.add_row(title, *[Text(round_cell(one, name)) for one in found["rounds"]])
    stop = found["stop"]
    said = f"stop before round {stop['round']}: {stop['why']}" if stop else "no reason to stop yet"
    Console().print(table, Text(_printable(said)))


def _show_answers(found: Found) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .teaching.figures import model_name

    table = Table(title=Text(_printable(found["prompt"])), expand=True, show_lines=True)
    for name in found["answers"]:
        table.add_column(model_name(name), ratio=1)
    table.add_row(*[Text(_printable(answer)) for answer in found["answers"].values()])
    Console().print(table)


def _printable(text: str) -> str:
    """A model's text without the characters that steer a terminal."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def _show_compared(found: Found) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .report import share

    names = [_printable(name) for name in found["constitutions"]]
    agreed = share(found["agreement"], found["agreement_ci"])
    title = f"same side in {agreed} of n = {found['n']} pairs"
    if found["kappa"] is not None:
        title += f", kappa {found['kappa']:.2f}"
    table = Table("prompt", "A", "B", *names, title=Text(title), show_lines=True)
    for pair in found["parting"]:
        texts = [Text(_printable(pair[name])) for name in ("prompt", "a", "b")]
        table.add_row(*texts, *(f"{p:.2f}" for p in pair["p_a"]))
    Console().print(table)
    for name, principles in found["coverage"].items():
        _show_principles(name, principles, found["torn"][name])


def _show_principles(name: str, covered: Found, torn: list[Found]) -> None:
    """On how many pairs each principle has something to say, and where they want different things.

    A pair is shown where principles prefer different sides.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    coverage = Table("principle", "has something to say of", title=Text(_printable(name)))
    for principle, share in covered.items():
        coverage.add_row(Text(_printable(principle)), f"{share:.0%} of the pairs")
    table = Table("prompt", "for A", "for B", title=Text("most torn"), show_lines=True)
    for pair in torn:
        sides = dict(zip(covered, pair["p_a"], strict=True))
        wanting = [[one for one, p in sides.items() if (p > 0.5) is a] for a in (True, False)]
        if all(wanting):
            table.add_row(
                *(Text(_printable(t)) for t in (pair["prompt"], *map(", ".join, wanting)))
            )
    for shown in (coverage, table) if table.row_count else (coverage,):
        Console().print(shown)


def _show_methods(found: Found) -> None:
    from rich.console import Console
    from rich.table import Table

    from .report import share

    table = Table("labeller", "accuracy (95% interval)", "n", title=found["file"])
    for name, one in (found["methods"] | found.get("baselines", {})).items():
        table.add_row(name, share(one["accuracy"], one["ci"]), str(one["n"]))
    Console().print(table)


def _show_files(found: Found) -> None:
    for file in found["files"]:
        print(file)
    if not found["files"]:
        print(f"all files are in {found['folder']} already")


def _show_nothing(_: Found) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
