"""A constitution to edit in a notebook: what is wrong with it is said while you type.

All text of users is escaped before it becomes HTML.
"""

from pathlib import Path
from typing import Any

import ipywidgets

from ..constitution import parse_constitution
from ..errors import InputError
from ..records import write_text
from .widgets import escaped

_MARKS = {True: "✓", False: "✗"}


def examined(text: str) -> tuple[bool, str]:
    """(whether the text is a constitution, what it holds or every problem by line and field)."""
    try:
        found = parse_constitution(text, "your text")
    except InputError as error:
        return False, str(error)
    pairs, principles = len(found.critique_revision), len(found.comparison)
    counts = f"{pairs} to revise by, {principles} to compare by"
    return True, f"valid: {found.name!r} has principles {counts}"


def constitution_editor(text: str, file: str | Path) -> ipywidgets.VBox:
    """A constitution's YAML in a box, examined at every change; save writes it if it is valid.

    `file` is written whole or not at all, and its folder is made if need be.
    """
    box = ipywidgets.Textarea(value=text, layout={"width": "98%", "height": "24em"})
    state, saved = ipywidgets.HTML(), ipywidgets.HTML()
    save = ipywidgets.Button(description="save")

    def examine(_: Any = None) -> None:
        valid, said = examined(box.value)
        state.value = f"{_MARKS[valid]} {escaped(said)}"
        save.disabled, saved.value = not valid, ""

    def write(_: Any) -> None:
        saved.value = escaped(_written(box.value, Path(file)))

    box.observe(examine, "value")
    save.on_click(write)
    examine()
    return ipywidgets.VBox([box, state, ipywidgets.HBox([save, saved])])


def _written(text: str, file: Path) -> str:
    """Write valid text and say where; else say why not."""
    valid, said = examined(text)
    if not valid:
        return f"not saved: {said}"
    try:
        write_text(file, text)
    except OSError as error:
        return f"not saved: {file} cannot be written ({error.strerror}); choose another file"
    return f"saved in {file}"
