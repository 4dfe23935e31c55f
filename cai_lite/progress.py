"""Progress on stderr: one bar a stage with rows, speed and time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Shows nothing unless asked; `bar` yields a function that takes how many rows were done."""

    show: bool = False

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        if self.show:
            sys.stderr.write(text + "\n")

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
            TextColumn("{task.description:<34}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(what, total=total)
            yield lambda n: bars.advance(task, n)
