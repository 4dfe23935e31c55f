"""Three ways to have a pair of answers judged: all give P(A is better), a soft label (paper §4.1).

*Multiple choice* asks in the paper's layout, in both orders; *pointwise* asks a yes-or-no question
about each answer; *contrast* reads the hidden states. An exact tie is 0.5, never an A.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..constitution import Principle
from ..prompts import comparison_text, pointwise_chat
from ..records import Pair
from ..texts import is_loop
from .contrast import LOWEST, Probe, contrast_logits
from .models import Base
from .scoring import choice_logprobs

Work = tuple[Pair, list[Principle]]


@dataclass(frozen=True)
class Labels:
    """P(A is better) of each pair, (pairs,), and the raw numbers behind it, (pairs, numbers)."""

    p_a: np.ndarray
    scores: dict[str, np.ndarray]


def multiple_choice(base: Base, work: Sequence[Work], batch_size: int) -> Labels:
    """P(A) from the log-probabilities of "A" and "B", averaged over both orders and principles."""
    asked = [
        base.neutral(comparison_text(pair.prompt, first, second, principle.principle))
        for pair, principles in work
        for principle in principles
        for first, second in ((pair.a, pair.b), (pair.b, pair.a))
    ]
    logs = choice_logprobs(base, asked, ["A", "B"], batch_size).numpy()
    p_first = 1 / (1 + np.exp(logs[:, 1] - logs[:, 0]))
    both = p_first.reshape(len(work), -1, 2)  # pairs, principles, orders
    p_a = 0.5 + (both[:, :, 0] - both[:, :, 1]).mean(1) / 2  # equal answers: 0.5 to the last bit
    return Labels(p_a, {"p_first": both.reshape(len(work), -1)})


def pointwise(base: Base, work: Sequence[Work], batch_size: int) -> Labels:
    """P(A) = σ of the mean difference, over principles, of log P(Yes) − log P(No)."""
    asked = [
        base.render(pointwise_chat(pair.prompt, answer, _question(principle)))
        for pair, principles in work
        for principle in principles
        for answer in (pair.a, pair.b)
    ]
    logs = choice_logprobs(base, asked, ["Yes", "No"], batch_size).numpy()
    margins = (logs[:, 0] - logs[:, 1]).reshape(len(work), -1, 2)  # pairs, principles, answers
    p_a = 1 / (1 + np.exp((margins[:, :, 1] - margins[:, :, 0]).mean(1)))
    return Labels(p_a, {"margins": margins.reshape(len(work), -1)})


def _question(principle: Principle) -> str:
    """The principle's own question; for principles without one, whether it was followed."""
    return principle.question or f"Does the response follow this rule: {principle.principle}"


def contrast(base: Base, probe: Probe, work: Sequence[Work], batch_size: int) -> Labels:
    """P(A) = σ of the difference of the contrast probe's readings; a loop or silence never wins."""
    asked = [pair.prompt for pair, _ in work for _ in "ab"]
    answers = [answer for pair, _ in work for answer in (pair.a, pair.b)]
    logits = contrast_logits(base, probe, asked, answers, batch_size)
    logits = np.where([is_loop(answer) for answer in answers], LOWEST, logits).reshape(-1, 2)
    p_a = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    return Labels(p_a, {"logits": logits})
