"""Figures say what they show, keep their colours, and stay small."""

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cai_lite.measures import share_interval
from cai_lite.teaching import figures

MODELS = {
    model: {
        "harmlessness": 0.2,
        "harmlessness_ci": [0.1, 0.3],
        "helpfulness": 0.5,
        "helpfulness_ci": [0.4, 0.7],
        "n": {"red_team": 16, "helpful": 12},
    }
    for model in ("base", "sl_cai", "rl_cai")
}
STEPS = [
    {"step": 1, "reward": 0.1, "kl": 0.0, "length": 40.0},
    {"step": 2, "reward": 0.3, "kl": -1e-5, "length": 38.0},
]
FIRST = figures.Texts([0.2, 0.4], [False, False])
PRINCIPLES = {
    0: FIRST,
    1: figures.Texts([0.5, 0.7], [True, False]),
    16: figures.Texts([0.6, 0.6], [True, True]),
}
DIRECT = {
    "critique": [FIRST, figures.Texts([0.6, 0.8], [True, True])],
    "direct": [FIRST, figures.Texts([0.5, 0.5], [True, False])],
}
ALL = {
    "score_by_round": lambda: figures.score_by_round([[0.3, 0.5], [0.6, 0.8]]),
    "score_by_principles": lambda: figures.score_by_principles(PRINCIPLES),
    "critique_or_direct": lambda: figures.critique_or_direct(DIRECT),
    "losses": lambda: figures.losses([2.0, 1.0], "SL-CAI"),
    "label_histogram": lambda: figures.label_histogram([0.2, 0.5, 1.0]),
    "reliability": lambda: figures.reliability([0.1, 0.9, 1.0], [0.2, 0.8, 1.0]),
    "rl_curves": lambda: figures.rl_curves(STEPS),
    "model_bars": lambda: figures.model_bars(MODELS),
    "plane": lambda: figures.plane(MODELS),
    "memory_bars": lambda: figures.memory_bars({"sl_cai": 1500, "rl_cai": 2500}),
    "pipeline": lambda: figures.pipeline("rl_cai"),
}


@pytest.mark.parametrize("name", ALL)
def test_svg_is_an_element_that_follows_the_pages_colours(name):
    svg = figures.to_svg(ALL[name]())
    assert svg.startswith('<svg role="img"') and svg.endswith("</svg>")
    assert "<text" in svg and "currentColor" in svg
    assert "<metadata" not in svg and "<g id" not in svg and "#1b1b1f" not in svg


@pytest.mark.parametrize("name", ALL)
def test_png_is_small(name):
    png = ALL[name]()._repr_png_()
    assert png.startswith(b"\x89PNG") and len(png) < 25_000


@pytest.mark.parametrize("name", [name for name in ALL if name != "pipeline"])
def test_axes_are_named_and_n_is_told(name):
    axes = ALL[name]().axes
    assert "n = " in axes[0].get_title()
    for ax in axes:
        assert ax.get_xlabel() or ax.get_ylabel()


def test_same_figure_same_svg():
    assert figures.to_svg(ALL["plane"]()) == figures.to_svg(ALL["plane"]())


def test_a_model_has_one_colour_everywhere():
    for name in ("model_bars", "plane"):
        svg = figures.to_svg(ALL[name]())
        assert all(colour in svg for colour in figures.MODEL_COLOURS.values())
    assert figures.MODEL_COLOURS["rl_cai"] in figures.to_svg(ALL["rl_curves"]())


def test_score_by_round_has_means_and_standard_errors():
    (ax,) = figures.score_by_round([[0.2, 0.4, 0.6], [0.6, 0.6, 0.6]]).axes
    assert "n = 3" in ax.get_title()
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0.4, 0.6])
    (bars,) = ax.collections
    reach = [(line[1, 1] - line[0, 1]) / 2 for line in bars.get_segments()]
    assert reach == pytest.approx([0.2 / 3**0.5, 0.0])
    assert figures.score_by_round([[0.2], [0.6]]).axes  # one row has no standard error


def test_harmlessness_by_round_is_a_share_with_its_interval():
    right = figures.score_by_round([[0.2, 0.4], [0.6, 0.6]], [[False] * 2, [True, False]]).axes[1]
    assert list(right.lines[0].get_ydata()) == [0.0, 0.5]
    (bars,) = right.collections
    reach = [[line[0, 1], line[1, 1]] for line in bars.get_segments()]
    assert reach[1] == pytest.approx(share_interval([1, 0]), abs=1e-4)
    assert reach[0][0] == 0 and reach[0][1] > 0.6  # two prompts say little


def test_principles_stand_by_their_number_and_first_answers_are_a_line():
    left, right = ALL["score_by_principles"]().axes
    dotted, line = left.lines[0], left.lines[1]
    assert list(dotted.get_ydata()) == pytest.approx([0.3, 0.3])
    assert list(line.get_ydata()) == pytest.approx([0.6, 0.6])
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "16"]
    assert list(right.lines[1].get_ydata()) == [0.5, 1.0] and "n = 2" in right.get_title()


def test_critique_and_direct_share_their_first_answers():
    left, right = ALL["critique_or_direct"]().axes
    ways = [text.get_text() for text in left.get_legend().get_texts()]
    assert ways == ["critique", "direct"]
    ends = [list(container[0].get_ydata()) for container in right.containers]
    assert ends == [[0.0, 1.0], [0.0, 0.5]]


def test_models_without_counts_are_drawn():
    models = {"base": {k: v for k, v in MODELS["base"].items() if k != "n"}, "mine": MODELS["base"]}
    assert "mine" in figures.to_svg(figures.plane(models))
    assert "n = " not in figures.model_bars(models).axes[0].get_title()


def test_pipeline_marks_where_you_are():
    assert "you are here" in figures.to_svg(figures.pipeline("sl_cai"))
    assert "you are here" not in figures.to_svg(figures.pipeline())
    with pytest.raises(ValueError, match="expected one of start, critique_revision"):
        figures.pipeline("nonsense")


def test_a_png_keeps_the_models_colours():
    with Image.open(BytesIO(ALL["model_bars"]()._repr_png_())) as picture:
        found = {colour for _, colour in picture.convert("RGB").getcolors()}
    assert len(found) <= 64
    for colour in figures.MODEL_COLOURS.values():
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert min(np.abs(wanted - other).max() for other in found) <= 4


def test_kl_is_in_nats_per_token():
    axes = ALL["rl_curves"]().axes
    assert axes[1].get_ylabel() == "KL (nats per token)"
    assert "nats per token" in axes[2].get_xlabel()


def test_memory_is_shown_as_told():
    (ax,) = figures.memory_bars({"adapter": 20.0}, "Weights by role", "MB").axes
    assert (ax.get_title(), ax.get_xlabel()) == ("Weights by role", "MB")
    assert [bar.get_width() for bar in ax.patches] == [20.0]
    (ax,) = figures.memory_bars({"sl_cai": 1500}).axes
    assert ax.get_xlabel() == "GB" and ax.patches[0].get_width() == 1.5


def test_a_notebook_shows_a_figure_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(figures.losses([1.0]))
    assert data["image/png"].startswith(b"\x89PNG")


def test_pyplot_is_not_imported():
    code = "import sys, cai_lite.teaching.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
