"""What a reader can click in a notebook, and the same as a table for pages and prints.

All text of models and users is escaped before it becomes HTML.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

import ipywidgets
from IPython.display import HTML, display

from ..constitution import CritiqueRevision
from ..records import Answer, Completion, Revision, Try
from .figures import model_name, rl_curves


def rl_table(rows: Sequence[Completion], advantages: Sequence[float] = ()) -> HTML:
    """Completions of RL with their rewards, and their advantages if given, as a static table."""
    head = ["prompt", "completion", "reward"] + (["advantage"] if len(advantages) else [])
    cells = [[row.prompt, row.completion, f"{row.reward:+.2f}"] for row in rows]
    for cell, advantage in zip(cells, advantages, strict=False):
        cell.append(f"{advantage:+.2f}")
    return HTML(_rl_evaluation_html(head, cells))


def rl_browser(rows: Sequence[Completion]) -> ipywidgets.VBox:
    """Completions of one step of RL at a time; the slider chooses the step."""
    steps = sorted({row.step for row in rows})
    slider = ipywidgets.SelectionSlider(options=steps, description="step")
    page = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        page.value = rl_table([row for row in rows if row.step == slider.value]).data

    slider.observe(show, "value")
    show()
    return ipywidgets.VBox([slider, page])


def live_curves() -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """What `rl_cai` calls after every step: it draws `figures.rl_curves` anew, in place."""
    place = display(HTML("waiting for the first step"), display_id=True)

    def show(steps: Sequence[Mapping[str, Any]]) -> None:
        place.update(rl_curves(steps))

    return show


def evaluation_table(answers: Sequence[Answer], limit: int = 6) -> HTML:
    """Answers of the models to the same prompts side by side, as a static table."""
    models = list(dict.fromkeys(row.model for row in answers))
    found = {(row.prompt, row.model): row for row in answers}
    prompts = list(dict.fromkeys(row.prompt for row in answers))[:limit]
    cells = [
        [prompt, *(_with_outcome(found.get((prompt, model))) for model in models)]
        for prompt in prompts
    ]
    return HTML(_rl_evaluation_html(["prompt", *map(model_name, models)], cells))


def _with_outcome(row: Answer | None) -> str:
    if row is None:
        return "—"
    passed = {True: ", passes", False: ", fails", None: ""}[row.passed]
    return f"[{row.outcome}{passed}] {row.response}"


def evaluation_browser(answers: Sequence[Answer]) -> ipywidgets.VBox:
    """Answers side by side, filtered by prompt set and by the outcome of the last model."""
    last = answers[-1].model
    sets = ipywidgets.Dropdown(options=sorted({row.prompt_set for row in answers}))
    outcomes = ["any", *sorted({row.outcome for row in answers})]
    outcome = ipywidgets.Dropdown(options=outcomes, description=model_name(last))
    page = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        chosen = {
            row.prompt
            for row in answers
            if row.model == last and outcome.value in ("any", row.outcome)
        }
        rows = [row for row in answers if row.prompt_set == sets.value and row.prompt in chosen]
        page.value = evaluation_table(rows, 100).data if rows else "no such answer"

    for control in (sets, outcome):
        control.observe(show, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([sets, outcome]), page])


def _rl_evaluation_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose text is left-aligned and escaped, line breaks kept."""
    style = "text-align:left;vertical-align:top;white-space:pre-wrap"

    def line(tag: str, cells: Sequence[str]) -> str:
        inside = "".join(f'<{tag} style="{style}">{escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{inside}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"


def escaped(text: str) -> str:
    """Text that is safe inside HTML: line breaks are kept, and `$` begins no mathematics."""
    return escape(text).replace("$", "&#36;").replace("\n", "<br>")


_CELL = "text-align:left;vertical-align:top;white-space:normal;overflow-wrap:break-word"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> HTML:
    """A table of cells that are HTML already; pass texts through `escaped` first."""
    top = "".join(f'<th style="{_CELL}">{cell}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return HTML(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


# --- notebook 01, critique and revision ---

_GONE = "background:#f3c6c6;color:#5b1010;text-decoration:line-through"
_NEW = "background:#c9e8cf;color:#0d4018;text-decoration:none"


def word_diff(before: str, after: str) -> str:
    """HTML of `after` with its new words marked and the words of `before` that went struck out."""
    old, new = before.split(), after.split()
    parts = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = escaped(" ".join(old[a:b])), escaped(" ".join(new[c:d]))
        if kind == "equal":
            parts.append(come)
            continue
        parts += [f'<del style="{_GONE}">{gone}</del>'] if gone else []
        parts += [f'<ins style="{_NEW}">{come}</ins>'] if come else []
    return " ".join(parts)


def revision_table(rows: Sequence[Revision]) -> HTML:
    """One prompt's rounds: principle, critique, what the text became, whether it is kept."""
    ordered = sorted(rows, key=lambda row: row.round)
    changed = [
        word_diff(before.response, row.response)
        for before, row in zip(ordered, ordered[1:], strict=False)
    ]
    texts = [escaped(ordered[0].response), *changed]
    cells = [
        [str(row.round), escaped(row.principle), escaped(row.critique), text, _fate(row)]
        for row, text in zip(ordered, texts, strict=True)
    ]
    found = html_table(["round", "principle", "critique", "text after the round", ""], cells)
    return HTML(f"<p><b>{escaped(ordered[0].prompt)}</b></p>{found.data}")


def _fate(row: Revision) -> str:
    if not row.round:
        return "first answer"
    return f"dropped: {escaped(row.dropped)}" if row.dropped else "kept"


def tries_table(row: Revision) -> HTML:
    """All candidates of one round, best first: the one that stayed, and why others did not."""
    ordered = sorted(row.tries, key=lambda tried: (bool(tried.fault), -tried.score))
    cells = [
        [f"{tried.score:.2f}", escaped(_verdict(row, tried)), escaped(tried.response)]
        for tried in ordered
    ]
    return html_table(["score", "", "candidate"], cells)


def _verdict(row: Revision, tried: Try) -> str:
    if tried.fault:
        return tried.fault
    # what was kept may go on with a reason, where the candidate had its full stop
    kept = row.response == tried.response or row.response.startswith(
        tried.response.rstrip(" .!") + ", "
    )
    return "kept" if kept else "sound, lower score"


def revision_stepper(rows: Sequence[Revision]) -> ipywidgets.VBox:
    """A principle, a prompt and a round to choose: the words that changed, and the candidates.

    A principle leaves the prompts that drew it in some round.
    """
    drawn = sorted({row.principle for row in rows if row.principle})
    principle = ipywidgets.Dropdown(options=["any", *drawn], description="principle")
    prompt = ipywidgets.Dropdown(description="prompt")
    last = max(row.round for row in rows)
    number = ipywidgets.IntSlider(value=last, min=0, max=last, description="round")
    page = ipywidgets.HTML()

    def choose(_: Any) -> None:
        able = [row for row in rows if principle.value in ("any", row.principle)]
        prompt.options = [(t[:90], i) for i, t in {r.prompt_id: r.prompt for r in able}.items()]
        prompt.index = 0  # of itself it would choose none
        turn(None)

    def turn(_: Any) -> None:
        shown = [r for r in rows if r.prompt_id == prompt.value and r.round <= number.value]
        tried = [row for row in shown if row.round == number.value and row.tries]
        page.value = "".join(
            [revision_table(shown).data if shown else "", *(tries_table(row).data for row in tried)]
        )

    prompt.layout.width = "95%"
    principle.observe(choose, "value")
    prompt.observe(turn, "value")
    number.observe(turn, "value")
    choose(None)
    return ipywidgets.VBox([principle, prompt, number, page])


def principle_table(pairs: Sequence[CritiqueRevision], rows: Sequence[Revision]) -> HTML:
    """What each principle did: how often drawn, how often sound, by how much the score rose."""
    cells = []
    for pair in pairs:
        own = [row for row in rows if row.principle == pair.id]
        sound = [row for row in own if not row.dropped]
        gains = [gain for row in sound if (gain := _gain(row, rows)) is not None]
        mean = f"{sum(gains) / len(gains):+.2f}" if gains else "—"
        cells.append([pair.id, str(len(own)), str(len(sound)), mean])
    return html_table(["principle", "drawn", "sound", "mean gain in score"], cells)


def _gain(row: Revision, rows: Sequence[Revision]) -> float | None:
    """How much this round added to the score of its prompt's text."""
    before = [r for r in rows if r.prompt_id == row.prompt_id and r.round == row.round - 1]
    if not before or row.score is None or before[0].score is None:
        return None
    return row.score - before[0].score


def principle_explorer(
    pairs: Sequence[CritiqueRevision], rows: Sequence[Revision], limit: int = 8
) -> ipywidgets.VBox:
    """A principle to choose: its two requests, and revisions that were written under it."""
    by_id = {pair.id: pair for pair in pairs}
    which = ipywidgets.Dropdown(options=list(by_id), description="principle")
    page = ipywidgets.HTML()

    def turn(_: Any) -> None:
        pair = by_id[which.value]
        own = [row for row in rows if row.principle == pair.id][:limit]
        cells = [[_fate(row), escaped(row.prompt), escaped(row.response)] for row in own]
        page.value = (
            f"<p><b>critique request</b> {escaped(pair.critique_request)}</p>"
            f"<p><b>revision request</b> {escaped(pair.revision_request)}</p>"
            f"{principle_table([pair], rows).data}"
            f"{html_table(['', 'prompt', 'text after the round'], cells).data}"
        )

    which.observe(turn, "value")
    turn(None)
    return ipywidgets.VBox([which, page])


# --- notebook 02, SL-CAI ---


def loss_mask(tokens: Sequence[str], mask: Sequence[int]) -> HTML:
    """Tokens in a row, those that count in the loss (mask 1) in colour, line breaks as ↵."""
    box = "border:1px solid #b8b8b8;border-radius:3px;margin:1px;padding:0 2px;white-space:pre"
    spans = [
        f'<span style="{_NEW if counts else "color:#808080"};{box};display:inline-block">'
        f"{escaped(token.replace(chr(10), '↵'))}</span>"
        for token, counts in zip(tokens, mask, strict=True)
    ]
    return HTML(f'<div style="line-height:1.9;font-family:monospace">{"".join(spans)}</div>')


def answers_table(prompts: Sequence[str], answers: Mapping[str, Sequence[str]]) -> HTML:
    """Answers of several models side by side, one prompt a row; `answers` maps name to texts."""
    rows = [
        [f"<b>{escaped(prompt)}</b>", *(escaped(texts[i]) for texts in answers.values())]
        for i, prompt in enumerate(prompts)
    ]
    return html_table(["prompt", *map(escaped, answers)], rows)


def answers_browser(
    prompts: Sequence[str], answers: Mapping[str, Sequence[str]]
) -> ipywidgets.VBox:
    """A prompt to choose; shows every model's answer to it."""
    which = ipywidgets.Dropdown(options=[(prompt[:90], i) for i, prompt in enumerate(prompts)])
    page = ipywidgets.HTML()

    def turn(_: Any) -> None:
        i = which.value
        shown = {name: [texts[i]] for name, texts in answers.items()}
        page.value = answers_table([prompts[i]], shown).data

    which.layout.width = "95%"
    which.observe(turn, "value")
    turn(None)
    return ipywidgets.VBox([which, page])
