"""Three ways to have a pair of answers judged: all give P(A is better), a soft label (paper §4.1).

*Multiple choice* asks in the paper's layout, in both orders; *pointwise* asks a yes-or-no question
about each answer; *contrast* reads the hidden states. An exact tie is 0.5, never an A. By rule and
for each of them, a loop, silence or an echo of the prompt loses against any other answer. The raw
numbers stay as they were read, but for contrast's of silence, in which there is nothing to read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..constitution import Principle
from ..prompts import comparison_text, pointwise_chat
from ..records import Pair
from ..texts import gives_back, is_loop, words
from .contrast import Probe, contrast_logits
from .models import Base
from .scoring import choice_logprobs

Work = tuple[Pair, list[Principle]]
_SURE = 0.9999  # of an answer beside a loop, silence or an echo


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
    about = [row for row, (_, principles) in enumerate(work) for _ in principles for _ in "ab"]
    logs = choice_logprobs(base, asked, ["A", "B"], batch_size, about).numpy()
    p_first = 1 / (1 + np.exp(logs[:, 1] - logs[:, 0]))
    both = p_first.reshape(len(work), -1, 2)  # pairs, principles, orders
    p_a = 0.5 + (both[:, :, 0] - both[:, :, 1]).mean(1) / 2  # equal answers: 0.5 to the last bit
    return Labels(settled(work, p_a), {"p_first": both.reshape(len(work), -1)})


def pointwise(base: Base, work: Sequence[Work], batch_size: int) -> Labels:
    """P(A) = σ of the mean difference, over principles, of log P(Yes) − log P(No)."""
    asked = [
        base.render(pointwise_chat(pair.prompt, answer, _question(principle)))
        for pair, principles in work
        for principle in principles
        for answer in (pair.a, pair.b)
    ]
    about = [(row, side) for row, (_, chosen) in enumerate(work) for _ in chosen for side in "ab"]
    logs = choice_logprobs(base, asked, ["Yes", "No"], batch_size, about).numpy()
    margins = (logs[:, 0] - logs[:, 1]).reshape(len(work), -1, 2)  # pairs, principles, answers
    p_a = 1 / (1 + np.exp((margins[:, :, 1] - margins[:, :, 0]).mean(1)))
    return Labels(settled(work, p_a), {"margins": margins.reshape(len(work), -1)})


def _question(principle: Principle) -> str:
    """The principle's own question; for principles without one, whether it was followed."""
    return principle.question or f"Does the response follow this rule: {principle.principle}"


def contrast(base: Base, probe: Probe, work: Sequence[Work], batch_size: int) -> Labels:
    """P(A) = σ of the difference of the contrast probe's readings."""
    asked = [pair.prompt for pair, _ in work for _ in "ab"]
    answers = [answer for pair, _ in work for answer in (pair.a, pair.b)]
    logits = contrast_logits(base, probe, asked, answers, batch_size).reshape(-1, 2)
    p_a = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    return Labels(settled(work, p_a), {"logits": logits})


def settled(work: Sequence[Work], p_a: np.ndarray) -> np.ndarray:
    """P(A) of each pair, (pairs,), where an answer is none: nearly 0 or 1, or 0.5 if both are."""
    none = np.array(
        [[no_answer(pair.prompt, text) for text in (pair.a, pair.b)] for pair, _ in work]
    )
    a, b = none[:, 0], none[:, 1]
    return np.select([a & b, a, b], [0.5, 1 - _SURE, _SURE], p_a)


def no_answer(prompt: str, text: str) -> bool:
    """Whether a text is silence, a loop, or the prompt given back."""
    return not words(text) or is_loop(text) or gives_back(text, prompt)
