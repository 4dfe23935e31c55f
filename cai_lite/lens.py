"""Principles under the lens: which agree, which pull apart, which decide nothing.

All of it is read off `p`, an array (principles, pairs): P(A is better) where one principle alone
was asked. The paper asks one random principle of its 16 for every pair (§4.1), so a pair on which
they pull apart gets a label by luck of the draw. A principle is decided on a pair where p is not
exactly one half. Every function raises InputError for a `p` that is no such array.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from .errors import InputError

ENOUGH = 10  # shared pairs below which agreement of two principles is not called a twin


def ensemble(p: np.ndarray) -> np.ndarray:
    """Mean over principles of P(A is better), (pairs,): the label of the whole constitution."""
    return _checked(p).mean(0)


def spread(p: np.ndarray) -> np.ndarray:
    """Standard deviation over principles of P(A is better), (pairs,), in 0..0.5.

    Low where the constitution speaks with one voice; high on edge cases. It measures agreement
    among principles, not truth: all of them may be wrong together.
    """
    return _checked(p).std(0)


def conflicts(p: np.ndarray) -> np.ndarray:
    """How evenly the decided principles split over A and B, (pairs,), in 0..1.

    4·s·(1 − s) where a share s of them prefer A: 0 if all prefer one side, 1 if half do. It is 0
    too where none is decided: nothing pulls apart. `spread` also counts how sure they are.
    """
    sides = _sides(p)
    decided = (sides != 0).sum(0)
    share = (sides > 0).sum(0) / np.maximum(decided, 1)
    return 4 * share * (1 - share)


def agreement(p: np.ndarray) -> np.ndarray:
    """Share of the pairs both are decided on where two principles prefer the same side.

    (principles, principles), 1 on the diagonal, nan where two share no decided pair. One half is
    what a coin would reach against any principle.
    """
    same, shared = _same_and_shared(p)
    found = np.full(same.shape, np.nan)
    np.divide(same, shared, out=found, where=shared > 0)
    np.fill_diagonal(found, 1.0)
    return found


def twins(names: Sequence[str], p: np.ndarray, most: float = 0.95) -> list[tuple[str, str, float]]:
    """Principles that say the same: (one, other, share) by falling share, from `most` up.

    Only two that share at least ENOUGH decided pairs count. Principles may be twins on these
    pairs and part on others. Raises InputError also for names that do not fit `p`.
    """
    _checked_names(names, p)
    share, (_, shared) = agreement(p), _same_and_shared(p)
    found = [
        (names[one], names[other], float(share[one, other]))
        for one, other in combinations(range(len(names)), 2)
        if shared[one, other] >= ENOUGH and share[one, other] >= most
    ]
    return sorted(found, key=lambda twin: -twin[2])


def idle(names: Sequence[str], p: np.ndarray, least: float = 0.02) -> dict[str, str]:
    """Principles that decide nothing on these pairs, each with the reason.

    Either P(A is better) is within `least` of one half on average, or the side is the same in
    every pair, of two or more. Raises InputError also for names that do not fit `p`.
    """
    _checked_names(names, p)
    sides, reach = _sides(p), np.abs(_checked(p) - 0.5).mean(1)
    reasons = (_idle(row, float(far), least) for row, far in zip(sides, reach, strict=True))
    return {name: reason for name, reason in zip(names, reasons, strict=True) if reason}


def _idle(sides: np.ndarray, reach: float, least: float) -> str:
    """Why a principle of these sides, (pairs,), decides nothing; empty if it decides."""
    if reach < least:
        return f"P(A) is {reach:.3f} from one half on average, less than {least:g}: no opinion"
    if len(sides) > 1 and abs(sides.sum()) == len(sides):
        side = "A" if sides[0] > 0 else "B"
        return f"prefers {side} in all {len(sides)} pairs, whatever stands there"
    return ""


def _same_and_shared(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the same side, and pairs both are decided on, each (principles, principles)."""
    sides = _sides(p)
    decided = np.abs(sides)
    shared = decided @ decided.T
    return (shared + sides @ sides.T) / 2, shared  # sides multiply to 1 where same, −1 where not


def _sides(p: np.ndarray) -> np.ndarray:
    """1 where A is preferred, −1 where B is, 0 where undecided, (principles, pairs)."""
    return np.sign(_checked(p) - 0.5)


def _checked(p: np.ndarray) -> np.ndarray:
    """`p` as an array of floats, once it is known to be probabilities by principle and pair."""
    p = np.asarray(p, dtype=float)
    if p.ndim != 2 or not p.size:
        raise InputError(
            f"p has shape {p.shape}; expected (principles, pairs), one or more of each: ask every "
            "principle of every pair, a row a principle"
        )
    outside = np.argwhere(~((p >= 0) & (p <= 1)))  # nan is outside too
    if len(outside):
        row, pair = outside[0]
        raise InputError(
            f"p[{row}, {pair}] is {p[row, pair]:g}; expected P(A is better), 0..1: leave out pairs "
            "that not every principle was asked"
        )
    return p


def _checked_names(names: Sequence[str], p: np.ndarray) -> None:
    rows = len(_checked(p))
    if len(names) != rows or len(set(names)) != rows:
        raise InputError(
            f"{len(names)} names, {len(set(names))} different, for {rows} principles; expected one "
            "of its own for each: pass their ids in the order of the rows of p"
        )
