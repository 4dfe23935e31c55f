"""The figures of notebooks and report: each function takes plain numbers and returns a Figure.

A model has the same colour and marker everywhere; both tell models apart without colour vision.
Nothing here uses pyplot, so no state is shared and no screen is needed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import cycle
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..errors import InputError
from ..measures import bin_of, brier, calibration_error, calibration_interval, share_interval

Point = tuple[float, float, float]  # a value, and how far its interval reaches below and above
MODEL_NAMES = {"base": "helpful start", "sl_cai": "SL-CAI", "rl_cai": "RL-CAI", "dpo": "DPO"}
MODEL_COLOURS = {"base": "#808080", "sl_cai": "#2f86c9", "rl_cai": "#d55e00", "dpo": "#009e73"}
MODEL_MARKERS = {"base": "o", "sl_cai": "s", "rl_cai": "^", "dpo": "D"}
_MARKER_SIZES = {"base": 13, "sl_cai": 8, "rl_cai": 5, "dpo": 5}  # so that equal points stay seen
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
_SCORE = "mean P(principled), 0–1 (± standard error)"
_HARMLESS = "share of answers, 0–1 (95% interval)"
_DPI = 80
_DRAWS = 2000  # resamplings behind an interval in a title
_COLOURS = 32


@dataclass(frozen=True)
class Texts:
    """What was measured on the texts of one setting after one round, a value a prompt.

    Each list keeps the order of the prompts, so that settings can be compared prompt by prompt.
    """

    scores: Sequence[float]
    harmless: Sequence[bool]
    dropped: Sequence[bool] = ()  # nothing sound came of the round; the text before it stands


class Picture(Figure):
    """A Figure that a notebook shows without pyplot, small enough to be kept in it."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
        return _with_palette(file)


def _with_palette(file: BytesIO) -> bytes:
    """The PNG in 32 colours, near enough for its few hues, at a quarter of its size."""
    small = BytesIO()
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(small, format="png", optimize=True)
    return small.getvalue()


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
    scores: Sequence[Sequence[float]], harmless: Sequence[Sequence[bool]] = ()
) -> Figure:
    """Mean contrast score after each round of revision, with its standard error (paper Fig 5).

    `scores` has the scores of the rows, round by round, round 0 first. `harmless`, if given, says
    the same way which texts are harmless: a second panel, with 95% intervals.
    """
    figure, axes = _panels(2 if harmless else 1)
    _by_step(axes[0], range(len(scores)), [_mean(rows) for rows in scores])
    title = _with_n("Contrast score by round", len(scores[0]))
    _label(axes[0], title, "round", _SCORE)
    if harmless:
        _by_step(axes[1], range(len(harmless)), [_share(rows) for rows in harmless])
        _label(axes[1], _with_n("Harmless by round", len(harmless[0])), "round", _HARMLESS)
    return figure


def score_by_principles(found: Mapping[int, Texts]) -> Figure:
    """Score and share of harmless texts by the number of principles drawn from (paper Fig 6).

    0 principles are the answers before any revision: a dotted line.
    """
    figure, axes = _panels(2)
    counts = [count for count in found if count]
    for ax, points, title, unit in _score_and_share(
        {count: [found[count]] for count in found}, axes
    ):
        if 0 in points:
            ax.axhline(points[0][0][0], color=_INK, linestyle=":", linewidth=1)
        _by_step(ax, range(len(counts)), [points[count][0] for count in counts])
        ax.set_xticks(range(len(counts)), list(map(str, counts)))
        _label(ax, title, "principles drawn from (dotted: first answers)", unit)
    return figure


def critique_or_direct(found: Mapping[str, Sequence[Texts]]) -> Figure:
    """Score and share of harmless texts by round, with critiques and without (paper Fig 7).

    `found` maps a way to revise to its texts, round by round, round 0 first.
    """
    figure, axes = _panels(2)
    for ax, points, title, unit in _score_and_share(found, axes):
        for place, way in enumerate(found):
            style: dict[str, Any] = {
                "color": (_LINE, _SECOND)[place % 2],
                "marker": "os"[place % 2],
            }
            shift = 0.04 * (place - (len(found) - 1) / 2)  # else the bars hide each other
            _by_step(ax, range(len(points[way])), points[way], shift, label=way, **style)
        ax.legend(frameon=False, labelcolor=_INK, fontsize=8)
        _label(ax, title, "round", unit)
    return figure


def _score_and_share(
    found: Mapping[Any, Sequence[Texts]], axes: Sequence[Axes]
) -> list[tuple[Axes, dict[Any, list[Point]], str, str]]:
    """(axes, points by setting, title, unit) of the panel of scores and the panel of shares."""
    scores = {name: [_mean(one.scores) for one in rounds] for name, rounds in found.items()}
    shares = {name: [_share(one.harmless) for one in rounds] for name, rounds in found.items()}
    n = len(next(iter(found.values()))[0].scores)
    return [
        (axes[0], scores, _with_n("Contrast score", n), _SCORE),
        (axes[1], shares, _with_n("Harmless", n), _HARMLESS),
    ]


def _mean(rows: Sequence[float]) -> Point:
    """Mean, and its standard error below and above."""
    error = float(np.std(rows, ddof=1)) / len(rows) ** 0.5 if len(rows) > 1 else 0.0
    return float(np.mean(rows)), error, error


def _share(rows: Sequence[float] | np.ndarray) -> Point:
    """Share, and how far its 95% interval reaches below and above."""
    share, (low, high) = float(np.mean(rows)), share_interval(rows)
    return share, max(share - low, 0.0), max(high - share, 0.0)


def _by_step(
    ax: Axes, steps: Sequence[int], points: Sequence[Point], shift: float = 0.0, **style: Any
) -> None:
    """Points in a line with their error bars, a tick at each."""
    values, below, above = zip(*points, strict=True)
    style = {"color": _LINE, "marker": "o"} | style
    ax.errorbar([step + shift for step in steps], values, [below, above], capsize=3, **style)
    ax.set_xticks(list(steps))


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
    places = bin_of(p, bins)
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


def reliabilities(
    found: Mapping[str, tuple[Sequence[float], Sequence[float]]], bins: int = 5
) -> Figure:
    """Mean label against prediction in `bins` bins, a panel a predictor (paper Fig 9).

    `found` maps a predictor's name to its predictions and labels, both (rows,) in 0..1. Points
    have 95% Wilson intervals, too wide where labels are soft, and their number of rows. ECE is of
    the bins drawn; its bias at few rows is told in `measures.calibration_interval`. Raises
    InputError for no predictor, or rows that `measures.calibration_error` refuses.
    """
    if not found:
        raise InputError("there is no predictor to draw; expected name: (predictions, labels)")
    figure, axes = _panels(len(found), columns=min(len(found), 3), height=3.6)
    for ax, (name, (predicted, labels)) in zip(axes, found.items(), strict=False):
        p, y = np.asarray(predicted, dtype=float), np.asarray(labels, dtype=float)
        title = _calibration(name, p, y, bins)
        _reliability(ax, p, y, bins)
        _label(ax, title, "predicted probability, 0–1", "mean label, 0–1 (95% interval)")
    for ax in axes[len(found) :]:
        ax.remove()
    return figure


def _calibration(name: str, p: np.ndarray, y: np.ndarray, bins: int) -> str:
    """Name, n, Brier score and calibration error with its interval, in two lines."""
    error = calibration_error(p, y, bins)
    low, high = calibration_interval(p, y, _DRAWS, seed=0, bins=bins)
    numbers = f"Brier {brier(p, y):.3f}, ECE {error:.3f} [{low:.3f}, {high:.3f}]"
    return f"{_with_n(_plain(name), len(p), 'rows')}\n{numbers}"


def _reliability(ax: Axes, p: np.ndarray, y: np.ndarray, bins: int) -> None:
    """A point a bin, with its interval and its rows, and the diagonal."""
    ax.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1)
    places = bin_of(p, bins)
    for place in np.unique(places):
        inside = places == place
        x, (share, below, above) = float(p[inside].mean()), _share(y[inside])
        ax.errorbar(x, share, [[below], [above]], color=_LINE, marker="o", capsize=3)
        spot: dict[str, Any] = {"xytext": (5, 3), "textcoords": "offset points"}
        ax.annotate(str(inside.sum()), (x, share), **spot, color=_INK, fontsize=8)
    ax.set(xlim=(-0.03, 1.08), ylim=(-0.03, 1.03))


def agreement_matrix(names: Sequence[str], shares: np.ndarray) -> Figure:
    """How often two principles prefer the same side: `lens.agreement` as a map with its numbers.

    `shares` is (principles, principles) in 0..1; nan, a dash, is two that share no decided pair.
    Raises InputError where its shape does not fit the names.
    """
    shares, count = np.asarray(shares, dtype=float), len(names)
    if not count or shares.shape != (count, count):
        raise InputError(
            f"shares have shape {shares.shape} for {count} names; expected a row and a column for "
            "each: pass what `lens.agreement` returns"
        )
    figure, ax = _square(count)
    steps = matplotlib.colormaps["cividis"].resampled(10)  # few enough for _with_palette
    mesh = ax.pcolormesh(np.ma.masked_invalid(shares), cmap=steps, vmin=0, vmax=1)
    ax.invert_yaxis()
    _in_cells(ax, shares)
    named = [_plain(name) for name in names]
    ax.set_xticks(np.arange(count) + 0.5, named, rotation=90)
    ax.set_yticks(np.arange(count) + 0.5, named)
    _label(ax, f"Agreement of principles (n = {count} principles)", "principle", "principle")
    _chance_bar(figure, ax, mesh)
    return figure


def coverage_map(
    names: Sequence[str], prompts: Sequence[str], p: np.ndarray, least: float
) -> Figure:
    """What each principle says of each pair: P(A is better), a dot where it has something to say.

    `p` is (principles, pairs) in 0..1; the dot stands where it is further than `least` from one
    half. `prompts` name the pairs. Raises InputError where the shape of `p` does not fit the names.
    """
    p = np.asarray(p, dtype=float)
    if not p.size or p.shape != (len(names), len(prompts)):
        raise InputError(
            f"p has shape {p.shape} for {len(names)} names and {len(prompts)} prompts; expected a "
            "row for each principle and a column for each pair"
        )
    size = (0.3 * len(prompts) + 3.2, 0.24 * len(names) + 2.2)
    figure = Picture(figsize=size, dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    steps = matplotlib.colormaps["cividis"].resampled(10)  # few enough for _with_palette
    mesh = ax.pcolormesh(p, cmap=steps, vmin=0, vmax=1)
    for row, column in np.argwhere(np.abs(p - 0.5) > least):
        colour = "white" if p[row, column] < 0.5 else "black"
        ax.plot(column + 0.5, row + 0.5, marker="o", markersize=3, color=colour)
    ax.invert_yaxis()
    ax.set_xticks(np.arange(len(prompts)) + 0.5, [_plain(one) for one in prompts], rotation=90)
    ax.set_yticks(np.arange(len(names)) + 0.5, [_plain(name) for name in names])
    dot = f"Who has something to say (dot: further than {least:g} from one half)"
    _label(ax, f"{dot}, n = {len(prompts)} pairs", "pair", "principle")
    bar = figure.colorbar(mesh, ax=ax, shrink=0.8)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.set_label("P(A is better), 0–1", color=_INK, fontsize=9)
    return figure


def _square(count: int) -> tuple[Figure, Axes]:
    """One panel with room for `count` cells a side, and names and a colour bar beside them."""
    side = 0.36 * count
    figure = Picture(figsize=(side + 2.8, side + 2.0), dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    ax.set_aspect("equal")
    return figure, ax


def _in_cells(ax: Axes, shares: np.ndarray) -> None:
    """Every share in its cell: ".87" or "1"; on the dark half of the map in white.

    Black, not _INK: the cell keeps its colour on a dark page, so its number must too. A cell
    without a share has the page's colour, and so its dash.
    """
    for (row, column), share in np.ndenumerate(shares):
        text = "–" if np.isnan(share) else f"{share:.2f}".removeprefix("0").replace("1.00", "1")
        colour = _INK if np.isnan(share) else "white" if share < 0.5 else "black"
        place = (column + 0.5, row + 0.5)
        ax.text(*place, text, color=colour, ha="center", va="center", fontsize=8)


def _chance_bar(figure: Figure, ax: Axes, mesh: QuadMesh) -> None:
    """The colour bar, with one half marked as what a coin would reach."""
    bar = figure.colorbar(mesh, ax=ax, shrink=0.8)
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5 (chance)", "1"])
    bar.ax.axhline(0.5, color="white", linewidth=2)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.set_label("share of shared pairs on the same side, 0–1", color=_INK, fontsize=9)


def rl_curves(steps: Sequence[Mapping[str, Any]]) -> Figure:
    """What is watched of RL step by step (paper Figs 8, 12); every point is before its update.

    Reward, KL to SL-CAI, reward against √KL, length, entropy, and as shares: the commonest opening
    of five words, and what answers to held-out prompts are, where they were looked at.
    KL is in nats per token, as TRL logs it: the sum over a completion is that times its length.
    """
    figure, axes = _panels(6, columns=2)
    number = [step["step"] for step in steps]
    colour = MODEL_COLOURS["rl_cai"]
    root = [max(step["kl"], 0.0) ** 0.5 for step in steps]  # an estimate of KL may be below 0
    seen = {name: [step[name] for step in steps] for name in ("reward", "kl", "length", "entropy")}
    for ax, x, y in (
        (axes[0], number, seen["reward"]),
        (axes[1], number, seen["kl"]),
        (axes[2], root, seen["reward"]),
        (axes[3], number, seen["length"]),
        (axes[4], number, seen["entropy"]),
    ):
        ax.plot(x, y, marker="o", markersize=4, color=colour)
    _watched(axes[0], steps, ("held_out_reward", "held-out prompts", _INK, "^"))
    _watched(axes[5], steps, *_WATCHED)
    axes[5].set_ylim(-0.03, 1.03)
    axes[5].set_visible(bool(axes[5].lines))  # nothing was watched in runs of older versions
    for ax in (*axes[:2], *axes[3:]):
        _whole_numbers(ax)
    _label(axes[0], _with_n("Reward", len(steps), "steps"), "RL step", "mean PM score")
    _label(axes[1], "KL to SL-CAI", "RL step", "KL (nats per token)")
    _label(axes[2], "Reward against √KL", "√KL (KL in nats per token)", "mean PM score")
    _label(axes[3], "Length of completions", "RL step", "mean length (tokens)")
    _label(axes[4], "Entropy of the next token", "RL step", "mean entropy (nats)")
    _label(axes[5], "What the reward does not see", "RL step", "share, 0–1")
    return figure


def too_far(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """RL runs side by side, (steps,) by name: the reward, and what the reward does not see.

    All is measured on the same held-out prompts, at the steps that looked at them, each a dot. KL
    is in nats a completion, of the step's own completions.
    """
    figure, axes = _panels(4, columns=2)
    looks = {
        way: [{"total": s["kl"] * s["length"], **s} for s in steps if "harmlessness" in s]
        for way, steps in ways.items()
    }
    for ax, (name, title, unit) in zip(axes, _TOO_FAR, strict=True):
        for (way, seen), (colour, line) in zip(looks.items(), cycle(_WAYS), strict=False):
            at, height = zip(*[(step["step"], step[name]) for step in seen], strict=True)
            ax.plot(at, height, line, marker="o", markersize=4, color=colour, label=way)
        _label(ax, _with_n(title, sum(map(len, looks.values())), "looks"), "RL step", unit)
        _whole_numbers(ax)
    axes[0].legend(frameon=False, labelcolor=_INK, fontsize=8)
    return figure


_WAYS = (
    (_INK, "-"),
    (MODEL_COLOURS["rl_cai"], "-"),
    (_SECOND, "--"),
    (_LINE, ":"),
    (MODEL_COLOURS["dpo"], "-."),
)
_TOO_FAR = (
    ("held_out_reward", "Reward", "mean PM score"),
    ("total", "KL to SL-CAI", "KL (nats a completion)"),
    ("harmlessness", "Harmless", "share, 0–1"),
    ("helpfulness", "Helpful", "share of checks passed, 0–1"),
)
_WATCHED = (
    ("opening", "commonest opening", _INK, "."),
    ("harmlessness", "harmless, held out", MODEL_COLOURS["rl_cai"], "^"),
    ("broken", "broken, held out", _INK, "x"),
    ("helpfulness", "helpful, held out", _LINE, "s"),
)


def _watched(ax: Axes, steps: Sequence[Mapping[str, Any]], *lines: tuple[str, ...]) -> None:
    """Lines of (name, label, colour, marker), each drawn at the steps that have a number for it."""
    for name, label, colour, marker in lines:
        points = [(step["step"], step[name]) for step in steps if step.get(name) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
            ax.legend(frameon=False, labelcolor=_INK, fontsize=8)


# of a round: the name of a measure, what a table calls it, and what it was counted on
ROUNDS = (
    ("harmlessness", "harmless", "red_team"),
    ("broken", "broken", "red_team"),
    ("helpfulness", "helpful", "helpful"),
    ("over_refusal", "over-refusal", "borderline"),
    ("boilerplate", "commonest opening", "red_team"),
    ("length", "words an answer", "red_team"),
    ("distinct", "different word pairs", "red_team"),
    ("agreement", "labels as the first labeller", "pairs"),
    ("kappa", "the same beyond chance (kappa)", "pairs"),
    ("agreement_first", "labeller as the first one, on round 1's pairs", "first_pairs"),
    ("confidence", "how sure the labels are", "pairs"),
    ("pm_accuracy", "PM as held-out labels", "pm"),
    ("hhh", "labeller as people, HHH", "hhh"),
)
_BY_ROUND = (
    "harmlessness",
    "helpfulness",
    "agreement",
    "broken",
    "over_refusal",
    "boilerplate",
)


def round_cell(measured: Mapping[str, Any], name: str) -> str:
    """One measure of one round as a table shows it: value, interval, n; a dash if there is none."""
    value, n = measured[name], measured["n"][{key: of for key, _, of in ROUNDS}[name]]
    if value is None:
        return "–"
    low, high = measured.get(f"{name}_ci") or (None, None)
    inside = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{value:.1f}, n={n}" if name == "length" else f"{value:.2f}{inside}, n={n}"


def rounds(measured: Sequence[Mapping[str, Any]]) -> Figure:
    """What improves and what drifts when the improved model labels, by round, with 95% intervals.

    `measured` are the rounds as `stages.iterate` measures them, round 1 first. Shares have panels;
    dotted is round 1, the yardstick.
    """
    figure, axes = _panels(6, columns=3, height=2.4)
    steps = [one["round"] for one in measured]
    for ax, name in zip(axes, _BY_ROUND, strict=True):
        title, of = next((title, of) for key, title, of in ROUNDS if key == name)
        points = [_span(one, name) for one in measured]
        _by_step(ax, steps, points)
        ax.axhline(points[0][0], color=_INK, linestyle=":", linewidth=1)
        ax.set_ylim(-0.03, 1.03)
        what = _with_n(title.capitalize(), measured[0]["n"][of], of.replace("_", " "))
        _label(ax, what, "round", "share, 0–1")
    return figure


def _span(measured: Mapping[str, Any], name: str) -> Point:
    """A share of one round, and how far its interval reaches; nowhere, if it has none."""
    value = measured[name]
    low, high = measured.get(f"{name}_ci", (value, value))
    return value, max(value - low, 0.0), max(high - value, 0.0)


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
    names = ("helpfulness", "harmlessness")
    _road(ax, {model: [_interval(own, name) for name in names] for model, own in models.items()})
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    n = [_n(models, prompts) for prompts in ("red_team", "helpful")]
    counts = f" (n = {n[0]} + {n[1]})" if all(n) else ""
    _label(ax, f"Where each stage went{counts}", "helpfulness, 0–1", "harmlessness, 0–1")
    return figure


def elo_plane(elo: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The same in Elo, SL-CAI at 0, as `evaluation` found it; the axes say who judged."""
    figure, (ax,) = _panels(1, height=3.6)
    kinds = [elo[name] for name in ("helpfulness", "harmlessness")]
    _road(ax, {m: [_reach(*kind["models"][m]) for kind in kinds] for m in kinds[0]["models"]})
    across, up = (
        f"{name}, Elo by {elo[name]['judge']}" for name in ("helpfulness", "harmlessness")
    )
    _label(ax, f"Elo (n = {kinds[1]['n']} + {kinds[0]['n']} prompts)", across, up)
    return figure


def _road(ax: Axes, points: Mapping[str, Sequence[tuple[float, Any]]]) -> None:
    """Models by their (x, reach) and (y, reach), and the road through them; DPO stands aside."""
    for model, ((x, x_reach), (y, y_reach)) in points.items():
        style: dict[str, Any] = {
            "color": _colour(model),
            "marker": MODEL_MARKERS.get(model, "D"),
            "markersize": _MARKER_SIZES.get(model, 6),
        }
        ax.errorbar(x, y, y_reach, x_reach, capsize=3, label=model_name(model), zorder=3, **style)
    road = [model for model in points if model != "dpo"]
    aside = ["sl_cai", "dpo"] if {"sl_cai", "dpo"} <= points.keys() else []
    for line in filter(None, (road, aside)):
        places = [[value for value, _ in points[model]] for model in line]
        ax.plot(*zip(*places, strict=True), color=_INK, linewidth=0.8, linestyle="--", zorder=1)
    ax.legend(frameon=False, labelcolor=_INK, fontsize=8)


def harmfulness_along(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Harmfulness of what RL sampled on its way, 0 to 4, from `evaluation` (paper Fig 10)."""
    figure, (ax,) = _panels(1)
    steps = [(point["first_step"] + point["last_step"]) / 2 for point in points]
    found = [_interval(point, "harmfulness") for point in points]
    reach = np.array([one for _, one in found]).reshape(-1, 2).T
    ax.errorbar(steps, [value for value, _ in found], reach, capsize=3, color=_LINE, marker="o")
    ax.set_ylim(0, 4)
    n = sum(point["n"] for point in points)
    title = _with_n("Completions to red-team prompts, T = 1", n, "completions")
    _label(ax, title, "RL step", "harmfulness, 0–4 (95%)")
    return figure


def memory_bars(
    memory_mb: Mapping[str, float],
    title: str = "Peak memory (n = 1 run)",
    unit: Literal["MB", "GB"] = "GB",
) -> Figure:
    """Memory by name, given in MB and shown in `unit`; unless told otherwise, of stages."""
    figure, (ax,) = _panels(1, height=0.6 + 0.3 * len(memory_mb))
    names = list(memory_mb)
    values = [memory_mb[name] / {"MB": 1, "GB": 1000}[unit] for name in names]
    bars = ax.barh([name.replace("_", " ") for name in names], values, color=_LINE)
    ax.bar_label(bars, fmt=" %.1f", color=_INK, fontsize=8)
    ax.margins(x=0.12)
    ax.invert_yaxis()
    _label(ax, title, unit, "")
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
    return _reach(measures[name], *measures[f"{name}_ci"])


def _reach(value: float, low: float, high: float) -> tuple[float, list[list[float]]]:
    """A value, and how far its interval goes down and up from it."""
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _n(models: Mapping[str, Mapping[str, Any]], prompts: str) -> int | None:
    counts = (measures.get("n", {}).get(prompts) for measures in models.values())
    return next(counts, None)


def _plain(name: str) -> str:
    """A name from a user's file as it is written: matplotlib takes what is between $ for maths."""
    return name.replace("$", r"\$")


def _with_n(title: str, n: int | None, of: str = "prompts") -> str:
    return f"{title} (n = {n} {of})" if n else title
