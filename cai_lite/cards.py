"""A card beside each trained adapter, by the hub's conventions: what it is, what it was measured
to do, and what it is not for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from .records import write_text
from .report import measures, share
from .run import Run
from .teaching.figures import model_name

_EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
_NAMES = {"preference_model": "Preference model"}  # it answers nothing, so figures name it not
_TASKS = {"preference_model": "text-classification"}
_WHAT = {
    "sl_cai": "The supervised half of Constitutional AI: the base fine-tuned on its own revisions.",
    "preference_model": "The preference model of Constitutional AI: a score of an answer to a "
    "prompt, read at the end token; only differences of scores mean something.",
    "rl_cai": "Constitutional AI's last step: SL-CAI after reinforcement learning from the "
    "preference model.",
    "dpo": "SL-CAI after DPO on the AI's labels, a substitute for the paper's RL.",
}


def write_cards(run: Run, report: dict[str, Any]) -> list[Path]:
    """Write `README.md` beside each adapter that the run has; returns their paths."""
    found = [run.path(stage, "adapter") for stage in _WHAT]
    paths = [folder / "README.md" for folder in found if folder.is_dir()]
    for path in paths:
        write_text(path, card(report, path.parent.parent.name))
    return paths


def card(report: dict[str, Any], stage: str) -> str:
    """The card of one stage's adapter, from the content of report.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown, and no model wrote any of it
    )
    return environment.get_template("card.md.j2").render(
        head=_head(report, stage).to_yaml(),
        title=f"{_NAMES.get(stage) or model_name(stage)} by cai-lite, on {base_model(report)}",
        what=_WHAT[stage],
        base=base_model(report),
        stage=stage,
        report=report,
        judge=report["stages"]["preference_model"],
        agrees=share(
            *(report["stages"]["preference_model"][n] for n in ("accuracy", "accuracy_ci"))
        ),
        columns=_columns(report, stage),
        rows=_rows(report, stage),
    )


def base_model(report: dict[str, Any]) -> str:
    """The base's hub id; for a model from a folder, the folder's name."""
    model = str(report["model"])
    if model == "embedded":
        return _EMBEDDED
    return Path(model).name if Path(model).exists() else model


def _head(report: dict[str, Any], stage: str) -> ModelCardData:
    return ModelCardData(
        base_model=base_model(report),
        library_name="peft",
        license="apache-2.0" if report["model"] == "embedded" else None,
        language="en",
        pipeline_tag=_TASKS.get(stage, "text-generation"),
        tags=["constitutional-ai", "rlaif", "lora", "cai-lite"],
    )


def _models(report: dict[str, Any], stage: str) -> dict[str, Any]:
    """What was measured of the start and of this model, if it is one that answers."""
    models = report["stages"]["evaluation"]["models"]
    return {name: models[name] for name in ("base", stage) if stage in models}


def _columns(report: dict[str, Any], stage: str) -> list[str]:
    return [model_name(name) for name in _models(report, stage)]


def _rows(report: dict[str, Any], stage: str) -> Sequence[dict[str, Any]]:
    models = _models(report, stage)
    return measures(models) if models else []
