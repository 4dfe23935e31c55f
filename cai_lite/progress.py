"""Progress on stderr: one bar a stage with rows, tokens a second and time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_WINDOW = 3600.0  # seconds over which rows are counted for the time left; a batch takes minutes


@dataclass(frozen=True)
class Progress:
    """Shows nothing unless asked; `bar` yields a function that takes how many rows were done."""

    show: bool = False
    _shown: list[Any] = field(default_factory=list, repr=False, compare=False)  # rich's bars

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        if self.show:
            sys.stderr.write(text + "\n")

    def tokens(self, count: int) -> None:
        """Count tokens written onto the bar that is shown, which says how many a second."""
        for bars in self._shown[-1:]:
            (task,) = bars.tasks
            total = task.fields["tokens"] + count
            speed = f"{total / max(task.elapsed, 0.1):.0f} tok/s"
            bars.update(task.id, tokens=total, speed=speed)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over `total` rows; on a pipe, which has no cursor, one line at the end."""
        if not self.show:
            yield lambda n: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<31}"),
            BarColumn(8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Bars(*columns, console=console, speed_estimate_period=_WINDOW) as bars:
            task = bars.add_task(what, total=total, tokens=0, speed="")
            bars.advance(task, 0)  # the clock of the time left starts now, not at the first row
            self._shown.append(bars)
            try:
                yield lambda n: bars.advance(task, n)
            finally:
                self._shown.pop()
