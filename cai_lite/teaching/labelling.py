"""You against the AI: label pairs blind, then see where you and the other labellers differ.

All text of models and users is escaped before it becomes HTML.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import HTML

from ..errors import InputError
from ..measures import share_interval
from ..records import Comparison, Pair, Rows, write_text
from ..run import derive_seed
from .widgets import escaped, html_table

Labels = Mapping[str, Mapping[str, float | str]]  # who said it: P(A is better), or A/B, by pair id

_MOVES = {"1": "left is better", "0": "neither", "2": "right is better", "b": "back"}
_P_A = {"A": 1.0, "B": 0.0, "?": 0.5}


# --- labels, and how far they agree ---


def labels_table(pairs: Sequence[Pair], labels: Labels) -> HTML:
    """Pairs with everybody's labels, as a static table; who has not labelled a pair shows —."""
    cells = [
        [pair.prompt, pair.a, pair.b, *(_label(said.get(pair.id)) for said in labels.values())]
        for pair in pairs
    ]
    head = ["prompt", "A", "B", *map(escaped, labels)]
    return html_table(head, [[escaped(cell) for cell in row] for row in cells])


def _label(label: float | str | None) -> str:
    return "—" if label is None else label if isinstance(label, str) else f"{label:.2f}"


def side_of(label: float | str | None) -> str:
    """The answer a label prefers: A, B, or ? for a tie, a shrug or no label."""
    if isinstance(label, str) or label is None:
        return label if label in ("A", "B") else "?"
    return "A" if label > 0.5 else "B" if label < 0.5 else "?"


def agreement_table(choices: Mapping[str, str], labels: Labels) -> HTML:
    """A reader's choices (A, B or ?, by pair id) against each labeller, as a static table.

    Counted are the pairs that both decided: n, the share on which they agree with its 95% Wilson
    interval, and Cohen's kappa.
    """
    rows = []
    for name, said in labels.items():
        both = [
            (choice, side)
            for pair, choice in choices.items()
            if choice in ("A", "B") and (side := side_of(said.get(pair))) in ("A", "B")
        ]
        rows.append([escaped(name), str(len(both)), _agreement(both), _kappa_cell(both)])
    return html_table(["labeller", "n decided", "agreement [95%]", "kappa"], rows)


def _agreement(both: Sequence[tuple[str, str]]) -> str:
    agree = [float(mine == theirs) for mine, theirs in both]
    if not agree:
        return "—"
    low, high = share_interval(agree)
    return f"{sum(agree) / len(agree):.2f} [{low:.2f}, {high:.2f}]"


def _kappa_cell(both: Sequence[tuple[str, str]]) -> str:
    found = kappa(both)
    if found == found:
        return f"{found:.2f}"
    why = "both always say the same" if both else "there is no pair that both decided"
    return f'<span title="no kappa: {why}">—</span>'


def kappa(both: Sequence[tuple[str, str]]) -> float:
    """Cohen's kappa of pairs of choices, A or B; nan where chance alone agrees always."""
    n = len(both)
    share = [sum(pair[k] == "A" for pair in both) / n if n else 1.0 for k in (0, 1)]
    chance = share[0] * share[1] + (1 - share[0]) * (1 - share[1])
    agree = sum(mine == theirs for mine, theirs in both) / n if n else 1.0
    return (agree - chance) / (1 - chance) if chance < 1 else float("nan")


# --- a person's labels in a file ---


def choices_in(path: str | Path) -> dict[str, str]:
    """The choices in a file of comparisons, A, B or ? by pair id; none if there is no file yet."""
    return {row.id: side_of(row.p_a) for row in Rows(Path(path), Comparison).read()}


def _comparison(pair: Pair, choice: str) -> Comparison:
    return Comparison(
        id=pair.id,
        prompt=pair.prompt,
        a=pair.a,
        b=pair.b,
        p_a=_P_A[side_of(choice)],
        method="person",
        principles=[],
        scores={},
    )


def _write(file: Path, row: Comparison) -> None:
    """Put a row at the end of the file; an older one of its id goes."""
    _erase(file, row.id)
    Rows(file, Comparison).append([row])


def _erase(file: Path, pair_id: str) -> None:
    """Write the file anew without one pair's row, if it has that row."""
    rows = Rows(file, Comparison).read()
    kept = [row for row in rows if row.id != pair_id]
    if len(kept) < len(rows):
        write_text(file, "".join(row.model_dump_json() + "\n" for row in kept))


def _take_over(file: Path, pairs: Sequence[Pair], choices: dict[str, str]) -> None:
    """Give file and `choices` what only the other has; where they differ, the file stands.

    Raises InputError if the file's labels are not a person's, or of other texts.
    """
    found = {row.id: row for row in Rows(file, Comparison).read()}
    for row in found.values():
        if row.method != "person":
            raise InputError(
                f"{file}: pair {row.id} was labelled by {row.method!r}, expected 'person'; "
                "choose another file for your own labels"
            )
    for pair in pairs:
        if pair.id in found:
            _refuse_other_texts(file, found[pair.id], pair)
            choices[pair.id] = side_of(found[pair.id].p_a)
        elif pair.id in choices:
            _write(file, _comparison(pair, choices[pair.id]))


def _refuse_other_texts(file: Path, row: Comparison, pair: Pair) -> None:
    if (row.prompt, row.a, row.b) != (pair.prompt, pair.a, pair.b):
        raise InputError(
            f"{file}: pair {pair.id} was labelled with other texts than those given now; choose "
            "another file, or label the pairs it was begun with"
        )


# --- the widget ---


def label_pairs(
    pairs: Sequence[Pair], labels: Labels, choices: dict[str, str], file: str | Path | None = None
) -> ipywidgets.VBox:
    """Label pairs blind by click or key; after the last, your agreement with `labels` appears.

    Choices go to `choices`, A, B or ? by pair id, and pairs already there are not asked again.
    Which answer stands left is drawn from the pair's id. With `file`, each choice is at once a
    `Comparison` there as well, and those in it count as made. Once the labels of others are seen,
    no choice can be taken back. Raises InputError if the file holds other texts or labels that
    are not a person's.
    """
    sheet = _Sheet(pairs, choices, None if file is None else Path(file))
    page = ipywidgets.HTML()
    buttons = ipywidgets.HBox([ipywidgets.Button(description=move) for move in _MOVES.values()])
    keys = ipywidgets.Text(
        description="keys: 1 left, 2 right, 0 neither, b back",
        style={"description_width": "initial"},
    )

    def act(move: str) -> None:
        sheet.act(move)
        show()

    def typed(change: Any) -> None:
        if change["new"]:
            keys.value = ""  # first, so that the box is free whatever happens
            act(_MOVES.get(change["new"][-1].lower(), ""))

    def show() -> None:
        waiting = sheet.waiting()
        page.value = sheet.question() if waiting else _outcome(pairs, labels, choices)
        for controls in (buttons, keys):
            controls.layout.display = None if waiting else "none"

    for button in buttons.children:
        button.on_click(lambda clicked: act(clicked.description))
    keys.observe(typed, "value")
    show()
    return ipywidgets.VBox([page, buttons, keys])


class _Sheet:
    """Pairs, what a reader chose of them so far, and the file, if any, that keeps it."""

    def __init__(self, pairs: Sequence[Pair], choices: dict[str, str], file: Path | None) -> None:
        self.pairs, self.choices, self.file = pairs, choices, file
        if file:
            _take_over(file, pairs, choices)

    def waiting(self) -> list[Pair]:
        """Pairs without a choice, in order."""
        return [pair for pair in self.pairs if pair.id not in self.choices]

    def question(self) -> str:
        """HTML of the first pair that waits: its prompt and answers, and nothing that labels it."""
        waiting = self.waiting()
        pair, number = waiting[0], len(self.pairs) - len(waiting) + 1
        texts = {"A": pair.a, "B": pair.b}
        cells = [escaped(texts[side]) for side in _left_and_right(pair)]
        return (
            f"<p>pair {number} of {len(self.pairs)}</p><p><b>{escaped(pair.prompt)}</b></p>"
            f"{html_table(['left', 'right'], [cells]).data}"
        )

    def act(self, move: str) -> None:
        """Do what a button says; once all pairs are labelled, nothing."""
        waiting = self.waiting()
        if not waiting or move not in _MOVES.values():
            return
        if move == "back":
            self._back()
            return
        left, right = _left_and_right(waiting[0])
        sides = {"left is better": left, "right is better": right, "neither": "?"}
        self._choose(waiting[0], sides[move])

    def _choose(self, pair: Pair, side: str) -> None:
        if self.file:
            _write(self.file, _comparison(pair, side))
        self.choices[pair.id] = side

    def _back(self) -> None:
        ours = {pair.id for pair in self.pairs}
        for last in [pair_id for pair_id in self.choices if pair_id in ours][-1:]:
            if self.file:
                _erase(self.file, last)
            del self.choices[last]


def _left_and_right(pair: Pair) -> tuple[str, str]:
    """Which answer stands left and which right, by chance but always the same for a pair."""
    return ("B", "A") if derive_seed("left and right", pair.id) % 2 else ("A", "B")


def _outcome(pairs: Sequence[Pair], labels: Labels, choices: Mapping[str, str]) -> str:
    """HTML of the last page: agreement with each labeller, and the pairs where they differ."""
    mine = {pair.id: choices[pair.id] for pair in pairs}
    apart = [pair for pair in pairs if _differ(mine[pair.id], pair.id, labels)]
    table = labels_table(apart, {"you": mine, **labels}).data if apart else "nowhere"
    return f"{agreement_table(mine, labels).data}<p><b>where they differ</b></p>{table}"


def _differ(choice: str, pair_id: str, labels: Labels) -> bool:
    sides = [side_of(said.get(pair_id)) for said in labels.values()]
    return any({choice, side} == {"A", "B"} for side in sides)
