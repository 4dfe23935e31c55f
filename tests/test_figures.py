"""Figures say what they show, keep their colours, and stay small."""

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cai_lite.errors import InputError
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
    for model in ("base", "sl_cai", "rl_cai", "dpo")
}
STEPS = [
    {"step": 1, "reward": 0.1, "kl": 0.0, "entropy": 2.0, "length": 40.0, "opening": 0.25,
     "held_out_reward": 0.2, "harmlessness": 0.5, "broken": 0.25, "boilerplate": 0.5,
     "helpfulness": 0.75},
    {"step": 2, "reward": 0.3, "kl": -1e-5, "entropy": 1.9, "length": 38.0, "opening": 0.5},
]  # fmt: skip
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
PREDICTORS = {
    "PM": ([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 0]),
    "one half": ([0.5] * 4, [0, 0, 1, 1]),
    "words": ([0.2, 0.4, 0.6, 1.0], [0.1, 0.3, 0.8, 0.9]),
    "p < $x$": ([0.3], [1]),
}
ELO = {
    name: {"judge": judge, "n": 16, "models": {
        "base": [-70.2, -130.0, -10.6], "sl_cai": [0, 0, 0], "dpo": [50.0, -10.0, 99.0],
        "rl_cai": [88.8, 20.0, 160.0],
    }}
    for name, judge in (("harmlessness", "embedded"), ("helpfulness", "checks"))
}  # fmt: skip
SHARES = np.random.default_rng(0).random((16, 16))
ALL = {
    "score_by_round": lambda: figures.score_by_round([[0.3, 0.5], [0.6, 0.8]]),
    "score_by_principles": lambda: figures.score_by_principles(PRINCIPLES),
    "critique_or_direct": lambda: figures.critique_or_direct(DIRECT),
    "losses": lambda: figures.losses([2.0, 1.0], "SL-CAI"),
    "label_histogram": lambda: figures.label_histogram([0.2, 0.5, 1.0]),
    "reliability": lambda: figures.reliability([0.1, 0.9, 1.0], [0.2, 0.8, 1.0]),
    "reliabilities": lambda: figures.reliabilities(PREDICTORS),
    "agreement_matrix": lambda: figures.agreement_matrix(list("abcdef"), SHARES[:6, :6]),
    "coverage_map": lambda: figures.coverage_map(["a", "b"], ["x", "y", "z"], SHARES[:2, :3], 0.1),
    "rl_curves": lambda: figures.rl_curves(STEPS),
    "too_far": lambda: figures.too_far({"no leash": STEPS, "leash": STEPS[:1]}),
    "model_bars": lambda: figures.model_bars(MODELS),
    "plane": lambda: figures.plane(MODELS),
    "elo_plane": lambda: figures.elo_plane(ELO),
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


def test_shares_are_drawn_where_they_were_looked_at():
    shares = ALL["rl_curves"]().axes[5]
    drawn = {line.get_label(): list(line.get_xdata()) for line in shares.lines}
    assert drawn == {
        "commonest opening": [1, 2], "harmless, held out": [1], "broken, held out": [1],
        "helpful, held out": [1],
    }  # fmt: skip
    reward = ALL["rl_curves"]().axes[0].lines
    assert [list(line.get_ydata()) for line in reward] == [[0.1, 0.3], [0.2]]
    older = [{k: v for k, v in step.items() if k != "opening"} for step in STEPS]
    figures.to_svg(figures.rl_curves([older[1]]))  # nothing was looked at: no legend, no error


def test_what_went_too_far_is_drawn_at_its_looks_alone():
    axes = ALL["too_far"]().axes
    assert [ax.get_ylabel() for ax in axes[:2]] == ["mean PM score", "KL (nats a completion)"]
    assert all(list(line.get_xdata()) == [1] for ax in axes for line in ax.lines)
    assert [line.get_label() for line in axes[0].lines] == ["no leash", "leash"]
    assert axes[2].lines[0].get_ydata()[0] == 0.5
    four = figures.too_far({name: STEPS[:1] for name in ("a", "b", "c", "d")}).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in four}) == 4


@pytest.mark.parametrize("name", ["plane", "elo_plane"])
def test_dpo_is_no_step_of_the_way(name):
    (ax,) = ALL[name]().axes
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [len(line.get_xdata()) for line in dashed] == [3, 2]


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


def test_each_predictor_has_its_panel_and_its_numbers():
    axes = figures.reliabilities(PREDICTORS).axes
    assert len(axes) == 4  # the fourth stands alone in its row, without empty panels
    name, numbers = axes[0].get_title().split("\n")
    assert name == "PM (n = 4 rows)"
    assert numbers.startswith("Brier 0.210, ECE 0.250 [")  # (0.01 * 3 + 0.81) / 4; (0.1 + 0.4) / 2
    assert axes[1].get_title().split("\n")[1] == "Brier 0.250, ECE 0.000 [0.000, 0.500]"


def test_a_bin_has_its_mean_its_rows_and_wilsons_interval():
    ax = figures.reliabilities(PREDICTORS).axes[0]
    diagonal, *lines = ax.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    points = [(bar[0].get_xdata()[0], bar[0].get_ydata()[0]) for bar in ax.containers]
    assert points == [pytest.approx((0.1, 0)), pytest.approx((0.9, 0.5))]
    assert [text.get_text() for text in ax.texts] == ["2", "2"]
    (line,) = ax.containers[1][2][0].get_segments()
    assert list(line[:, 1]) == pytest.approx(share_interval([1, 0]), abs=1e-4)


def test_calibration_without_rows_or_predictors_is_refused():
    with pytest.raises(InputError, match="no predictor"):
        figures.reliabilities({})
    with pytest.raises(InputError, match="label for every prediction"):
        figures.reliabilities({"PM": ([0.1, 0.2], [1])})


def test_names_of_users_are_not_read_as_maths():
    svg = figures.to_svg(figures.reliabilities(PREDICTORS))
    assert "p &lt; $x$ (n = 1 rows)" in svg
    assert "$y$" in figures.to_svg(figures.agreement_matrix(["$y$"], np.ones((1, 1))))


def test_agreement_is_written_in_its_cells_in_the_order_of_names():
    shares = np.array([[1, 0.87, np.nan], [0.87, 1, 0.05], [np.nan, 0.05, 1]])
    ax, bar = figures.agreement_matrix(["a", "b", "c"], shares).axes
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert len(written) == 9 and written[1.5, 0.5] == ".87" and written[2.5, 1.5] == ".05"
    assert written[2.5, 0.5] == "–" and written[1.5, 1.5] == "1"
    assert ax.get_ylim() == (3, 0)  # the first name is on top, as the matrix is written
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["a", "b", "c"]
    marks = {
        tick.get_text(): mark
        for mark, tick in zip(bar.get_yticks(), bar.get_yticklabels(), strict=True)
    }
    assert marks["0.5 (chance)"] == 0.5


def test_numbers_in_cells_can_be_read():
    figure = figures.agreement_matrix(["a", "b"], np.array([[1, 0.49], [0.5, 0.0]]))
    ax = figure.axes[0]
    figure.draw_without_rendering()
    mesh = ax.collections[0]
    for text, face in zip(ax.texts, mesh.get_facecolors(), strict=True):
        light = [0.0 if text.get_color() == "black" else 1.0, _luminance(face)]
        assert (max(light) + 0.05) / (min(light) + 0.05) >= 4.5  # WCAG 2.2, contrast of text


def _luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_agreement_needs_a_name_for_every_row():
    with pytest.raises(InputError, match=r"shape \(2, 2\) for 3 names"):
        figures.agreement_matrix(["a", "b", "c"], np.ones((2, 2)))


def test_a_dot_marks_who_has_something_to_say():
    p = np.array([[0.5, 0.61, 0.1], [0.59, 0.5, 0.41]])
    ax = figures.coverage_map(["a", "b"], ["x", "y", "z$"], p, 0.1).axes[0]
    dots = {(line.get_xdata()[0], line.get_ydata()[0]): line.get_color() for line in ax.lines}
    assert dots == {(1.5, 0.5): "black", (2.5, 0.5): "white"}
    assert ax.get_ylim() == (2, 0) and "0.1 from one half" in ax.get_title()
    with pytest.raises(InputError, match=r"shape \(2, 3\) for 1 names and 3 prompts"):
        figures.coverage_map(["a"], ["x", "y", "z"], p, 0.1)


def test_a_map_of_the_papers_sixteen_principles_fits_a_notebook():
    png = figures.agreement_matrix([f"principle-{i}" for i in range(16)], SHARES)._repr_png_()
    assert len(png) < 32_000  # 256 numbers; a notebook has room for 150,000


def test_harmfulness_along_rl_stays_on_the_papers_scale() -> None:
    points = [
        {"first_step": 1, "last_step": 2, "n": 8, "harmfulness": 2.5, "harmfulness_ci": [2, 3]},
        {"first_step": 3, "last_step": 4, "n": 9, "harmfulness": 1.5, "harmfulness_ci": [1, 2]},
    ]
    (ax,) = figures.harmfulness_along(points).axes
    assert ax.get_ylim() == (0, 4) and "n = 17 completions" in ax.get_title()
    assert ax.lines[0].get_xdata().tolist() == [1.5, 3.5]
    assert figures.harmfulness_along([]).axes[0].get_ylim() == (0, 4)
