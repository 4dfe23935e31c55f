"""The figures of notebooks and report: each function takes plain numbers and returns a Figure.

A model has the same colour and marker everywhere; both tell models apart without colour vision.
Nothing here uses pyplot, so no state is shared and no screen is needed.
"""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MODEL_NAMES = {"base": "helpful start", "sl_cai": "SL-CAI", "rl_cai": "RL-CAI"}
MODEL_COLOURS = {"base": "#808080", "sl_cai": "#2f86c9", "rl_cai": "#d55e00"}
MODEL_MARKERS = {"base": "o", "sl_cai": "s", "rl_cai": "^"}
_MARKER_SIZES = {"base": 13, "sl_cai": 8, "rl_cai": 5}  # so that equal points stay seen
PIPELINE = {
    "start": "helpful\nstart",
    "critique_revision": "critique &\nrevision",
    "sl_cai": "SL-CAI",
    "ai_feedback": "AI\nfeedback",
    "preference_model": "preference\nmodel",
    "rl_cai": "RL-CAI",
    "evaluation": "evaluation",
}
_INK = "#1b1b1f"  # text and lines; on a web page it becomes the page's own text colour
_LINE, _SECOND = "#2f86c9", "#b5569b"
_DPI = 80


class Picture(Figure):
    """A Figure that a notebook shows without pyplot, small enough to be kept in it."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
        return file.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element for a page: text stays text and takes the page's colour."""
    file = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cai-lite"}):
        figure.savefig(file, format="svg", bbox_inches="tight", transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # else every figure of a page has a "figure_1"
    return svg.replace(_INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def score_by_round(
    scores: Sequence[float] | Sequence[Sequence[float]],
    outcomes: Sequence[float] | None = None,
    n: int | None = None,
) -> Figure:
    """Mean contrast score after each round of revision, round 0 first (paper Fig 5).

    A round is its mean, or the scores of its rows, which adds the standard error. `outcomes` is
    the share of texts that object in words, in each round.
    """
    rows = [np.atleast_1d(np.asarray(one, dtype=float)) for one in scores]
    n = n or (len(rows[0]) if len(rows[0]) > 1 else None)
    figure, axes = _panels(1 + (outcomes is not None))
    rounds = range(len(rows))
    errors = [one.std() / np.sqrt(len(one)) if len(one) > 1 else 0.0 for one in rows]
    means = [one.mean() for one in rows]
    axes[0].errorbar(rounds, means, errors, marker="o", color=_LINE, capsize=3)
    _label(axes[0], _with_n("Contrast score by round", n), "round", "mean P(principled), 0–1")
    if outcomes is not None:
        axes[1].plot(rounds, outcomes, marker="o", color=_SECOND)
        axes[1].set_ylim(-0.03, 1.03)
        _label(axes[1], _with_n("Texts that object in words", n), "round", "share of texts, 0–1")
    for ax in axes:
        ax.set_xticks(list(rounds))
    return figure


def losses(losses: Sequence[float], title: str = "Training loss") -> Figure:
    """The loss of every optimiser step."""
    figure, (ax,) = _panels(1)
    ax.plot(range(1, len(losses) + 1), losses, marker=".", color=_LINE)
    _whole_numbers(ax)
    _label(ax, f"{title} (n = {len(losses)} steps)", "optimiser step", "loss (nats)")
    return figure


def label_histogram(p_a: Sequence[float]) -> Figure:
    """How the AI's soft labels P(A is better) are spread; at one half it has no opinion."""
    figure, (ax,) = _panels(1)
    ax.hist(p_a, bins=20, range=(0, 1), color=_LINE, edgecolor=_INK, linewidth=0.4)
    ax.axvline(0.5, color=_INK, linestyle=":", linewidth=1)
    _label(ax, _with_n("AI labels", len(p_a), "pairs"), "P(A is better), 0–1", "pairs")
    return figure


def reliability(predicted: Sequence[float], labels: Sequence[float], bins: int = 5) -> Figure:
    """Mean AI label against the preference model's prediction, by bins; the diagonal is honest."""
    p, y = np.asarray(predicted, dtype=float), np.asarray(labels, dtype=float)
    places = np.minimum((p * bins).astype(int), bins - 1)
    figure, (ax,) = _panels(1)
    ax.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1)
    ax.plot(p, y, ".", color="#808080", alpha=0.5, markersize=4)
    for place in np.unique(places):
        inside = places == place
        area = 20 + 200 * inside.mean()
        ax.scatter(p[inside].mean(), y[inside].mean(), s=area, color=_LINE, zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    title = _with_n("Calibration of the preference model", len(p), "held-out pairs")
    _label(ax, title, "predicted P(A is better), 0–1", "AI label P(A is better), 0–1")
    return figure


def rl_curves(steps: Sequence[Mapping[str, float]]) -> Figure:
    """Reward, KL to SL-CAI, reward against √KL, and length, step by step (paper Figs 8, 12)."""
    figure, axes = _panels(4, columns=2)
    number = [step["step"] for step in steps]
    colour = MODEL_COLOURS["rl_cai"]
    root = [max(step["kl"], 0.0) ** 0.5 for step in steps]  # an estimate of KL may be below 0
    reward = [step["reward"] for step in steps]
    for ax, x, y in (
        (axes[0], number, reward),
        (axes[1], number, [step["kl"] for step in steps]),
        (axes[2], root, reward),
        (axes[3], number, [step["length"] for step in steps]),
    ):
        ax.plot(x, y, marker="o", markersize=4, color=colour)
    for ax in (axes[0], axes[1], axes[3]):
        _whole_numbers(ax)
    _label(axes[0], _with_n("Reward", len(steps), "steps"), "RL step", "mean PM score")
    _label(axes[1], "KL to SL-CAI", "RL step", "KL (nats)")
    _label(axes[2], "Reward against √KL", "√KL (√nats)", "mean PM score")
    _label(axes[3], "Length of completions", "RL step", "mean length (tokens)")
    return figure


def model_bars(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Harmlessness and helpfulness of each model, with 95% intervals."""
    figure, axes = _panels(2)
    for ax, name, prompts in (
        (axes[0], "harmlessness", "red_team"),
        (axes[1], "helpfulness", "helpful"),
    ):
        for place, (model, measures) in enumerate(models.items()):
            value, reach = _interval(measures, name)
            ax.bar(place, value, yerr=reach, color=_colour(model), ecolor=_INK, capsize=4)
        ax.set_xticks(range(len(models)), [model_name(model) for model in models])
        ax.set_ylim(0, 1)
        _label(ax, _with_n(name.capitalize(), _n(models, prompts)), "", "share of answers, 0–1")
    return figure


def plane(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Helpfulness against harmlessness: where each stage went, with 95% intervals (paper Fig 2)."""
    figure, (ax,) = _panels(1, height=3.6)
    points = []
    for model, measures in models.items():
        x, x_reach = _interval(measures, "helpfulness")
        y, y_reach = _interval(measures, "harmlessness")
        points.append((x, y))
        style: dict[str, Any] = {
            "color": _colour(model),
            "marker": MODEL_MARKERS.get(model, "D"),
            "markersize": _MARKER_SIZES.get(model, 6),
        }
        ax.errorbar(x, y, y_reach, x_reach, capsize=3, label=model_name(model), zorder=3, **style)
    ax.plot(*zip(*points, strict=True), color=_INK, linewidth=0.8, linestyle="--", zorder=1)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    ax.legend(frameon=False, labelcolor=_INK, fontsize=8)
    n = [_n(models, prompts) for prompts in ("red_team", "helpful")]
    counts = f" (n = {n[0]} + {n[1]})" if all(n) else ""
    _label(ax, f"Where each stage went{counts}", "helpfulness, 0–1", "harmlessness, 0–1")
    return figure


def memory_bars(memory_mb: Mapping[str, float]) -> Figure:
    """Peak memory of each stage."""
    figure, (ax,) = _panels(1, height=0.6 + 0.3 * len(memory_mb))
    names = list(memory_mb)
    values = [memory_mb[name] / 1000 for name in names]
    bars = ax.barh([name.replace("_", " ") for name in names], values, color=_LINE)
    ax.bar_label(bars, fmt=" %.1f", color=_INK, fontsize=8)
    ax.margins(x=0.12)
    ax.invert_yaxis()
    _label(ax, "Peak memory (n = 1 run)", "GB", "")
    return figure


def pipeline(current: str | None = None) -> Figure:
    """The road of the paper's Fig 1, with the stage `current` marked "you are here".

    Raises ValueError for a stage that is not in PIPELINE.
    """
    if current is not None and current not in PIPELINE:
        raise ValueError(f"stage {current!r} is unknown; expected one of {', '.join(PIPELINE)}")
    figure = Picture(figsize=(9.2, 1.0), dpi=_DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.5, len(PIPELINE) - 0.5), ylim=(-0.7, 0.4))
    ax.axis("off")
    for place, (name, text) in enumerate(PIPELINE.items()):
        _box(ax, place, text, name == current)
    return figure


def _box(ax: Axes, place: int, text: str, here: bool) -> None:
    face, edge = (_LINE, _LINE) if here else ("none", _INK)
    box = {"boxstyle": "round,pad=0.5", "facecolor": face, "edgecolor": edge}
    colour = "white" if here else _INK
    weight = "bold" if here else "normal"
    options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
    ax.text(place, 0, text, color=colour, weight=weight, bbox=box, **options)
    if here:
        ax.text(place, -0.53, "▲ you are here", color=_INK, **options)
    if place:
        arrow = {"arrowstyle": "->", "color": _INK}
        ax.annotate("", (place - 0.35, 0), (place - 0.65, 0), arrowprops=arrow)


def model_name(model: str) -> str:
    """A model's name as figures and report write it."""
    return MODEL_NAMES.get(model, model)


def _colour(model: str) -> str:
    return MODEL_COLOURS.get(model, _SECOND)


def _panels(
    count: int, columns: int | None = None, height: float = 2.7
) -> tuple[Figure, list[Axes]]:
    columns = columns or count
    rows = -(-count // columns)
    size = (4.4 * columns, height * rows)
    figure = Picture(figsize=size, dpi=_DPI, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _whole_numbers(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _label(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10, color=_INK)
    ax.set_xlabel(x, fontsize=9, color=_INK)
    ax.set_ylabel(y, fontsize=9, color=_INK)
    ax.tick_params(colors=_INK, labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_INK)
    ax.patch.set_alpha(0)


def _interval(measures: Mapping[str, Any], name: str) -> tuple[float, list[list[float]]]:
    """A measure and how far its interval reaches below and above it, as error bars want it."""
    value, (low, high) = measures[name], measures[f"{name}_ci"]
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _n(models: Mapping[str, Mapping[str, Any]], prompts: str) -> int | None:
    counts = (measures.get("n", {}).get(prompts) for measures in models.values())
    return next(counts, None)


def _with_n(title: str, n: int | None, of: str = "prompts") -> str:
    return f"{title} (n = {n} {of})" if n else title
