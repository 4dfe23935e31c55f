"""What the exercises of the notebooks are checked with: each check knows the usual mistakes.

A check takes the reader's function, tries it on small numbers, and says in one sentence what is
wrong, or that it is right. A stub that returns None is "not attempted yet", never an error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Verdict(str):
    """A sentence that a notebook shows without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


NOT_YET = Verdict("○ not attempted yet")


def _right(what: str) -> Verdict:
    return Verdict(f"✓ {what}")


def _wrong(why: str) -> Verdict:
    return Verdict(f"✗ {why}")
