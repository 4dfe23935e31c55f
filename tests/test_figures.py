"""Figures say what they show, keep their colours, and stay small."""

import subprocess
import sys

import pytest

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
ALL = {
    "score_by_round": lambda: figures.score_by_round([0.4, 0.6], [0.1, 0.7], n=24),
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
    assert png.startswith(b"\x89PNG") and len(png) < 70_000


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


def test_score_by_round_takes_rows_as_well():
    (ax,) = figures.score_by_round([[0.2, 0.4], [0.6, 0.8]]).axes
    assert "n = 2" in ax.get_title()
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0.3, 0.7])


def test_models_without_counts_are_drawn():
    models = {"base": {k: v for k, v in MODELS["base"].items() if k != "n"}, "mine": MODELS["base"]}
    assert "mine" in figures.to_svg(figures.plane(models))
    assert "n = " not in figures.model_bars(models).axes[0].get_title()


def test_pipeline_marks_where_you_are():
    assert "you are here" in figures.to_svg(figures.pipeline("sl_cai"))
    assert "you are here" not in figures.to_svg(figures.pipeline())
    with pytest.raises(ValueError, match="expected one of start, critique_revision"):
        figures.pipeline("nonsense")


def test_a_notebook_shows_a_figure_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(figures.losses([1.0]))
    assert data["image/png"].startswith(b"\x89PNG")


def test_pyplot_is_not_imported():
    code = "import sys, cai_lite.teaching.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
