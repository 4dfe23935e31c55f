"""Five ways to have a pair of answers judged: all give P(A is better), a soft label (paper §4.1).

*Multiple choice* asks in the paper's layout, in both orders; *chain of thought* lets the model
argue first; *pointwise* asks a yes-or-no question about each answer; *contrast* reads the hidden
states; *mixed* weighs the last two. An exact tie is 0.5, never an A. By rule and for each of
them, a loop, silence or an echo of the prompt loses against any other answer; the raw numbers stay
as they were read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..constitution import Principle
from ..prompts import (
    VERDICT,
    comparison_prefix,
    comparison_text,
    pointwise_chat,
    pointwise_examples,
    split_verdict,
    thought_text,
)
from ..records import ContrastPair, Pair
from ..texts import gives_back, says_nothing_new, words
from .contrast import answer_states
from .models import Base
from .reader import Reader, fit_temperature
from .sampling import Sampling, generate
from .scoring import choice_logprobs

Work = tuple[Pair, list[Principle]]
QUESTION = "Is the response helpful, honest and harmless?"
_SURE = 0.9999  # of an answer beside a loop, silence or an echo


@dataclass(frozen=True)
class Labels:
    """P(A is better) of each pair, (pairs,), nan for no label, and what is behind it.

    `scores` are raw numbers, (pairs, numbers); `thoughts` the texts of a chain of thought.
    """

    p_a: np.ndarray
    scores: dict[str, np.ndarray]
    thoughts: list[list[str]] = field(default_factory=list)


def multiple_choice(
    base: Base, work: Sequence[Work], batch_size: int, few_shots: bool = False
) -> Labels:
    """P(A) from the log-probabilities of "A" and "B", averaged over both orders and principles."""
    prefix = comparison_prefix(thoughts=False) if few_shots else ""
    asked = [
        base.neutral(prefix + comparison_text(pair.prompt, first, second, principle.principle))
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


def chain_of_thought(
    base: Base,
    work: Sequence[Work],
    batch_size: int,
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    clamp: tuple[float, float] = (0.40, 0.60),
) -> Labels:
    """P(A) read behind the model's own reasoning, averaged over samples and clamped (§4.1).

    `seeds`, (pairs, samples): the first principle of a pair is argued once a seed, in turns in
    the one order and the other. A sample without one plain verdict counts for nothing; a pair
    without any other has no label. `scores` has each sample's P(A) before the clamp, nan for none.
    """
    shown = [
        _one_order(item, number)
        for item, own in zip(work, seeds, strict=True)
        for number in range(len(own))
    ]
    prefix = base.neutral(comparison_prefix(thoughts=True))
    texts = [base.neutral(thought_text(*one)) for one in shown]
    flat = [seed for own in seeds for seed in own]
    said = generate(base, texts, sampling, flat, prefix, batch_size=batch_size)
    asked = [prefix + text for text in texts]
    samples = _verdicts(base, asked, said, batch_size).reshape(len(work), -1)
    samples[:, 1::2] = 1 - samples[:, 1::2]  # argued in the other order
    p_a = np.where(_heard(samples), settled(work, _mean_heard(samples)), np.nan)
    thoughts = [said[i : i + samples.shape[1]] for i in range(0, len(said), samples.shape[1])]
    return Labels(np.clip(p_a, *clamp), {"p_a": samples}, thoughts)


def _verdicts(base: Base, asked: Sequence[str], said: Sequence[str], batch_size: int) -> np.ndarray:
    """P("A") behind each reasoning, (texts,); nan where it does not end in one verdict."""
    ends = {i: end for i, text in enumerate(said) if (end := split_verdict(text))}
    p_first = np.full(len(said), np.nan)
    if ends:
        texts = [asked[i] + base.neutral(f" {why} {VERDICT}") for i, (why, _) in ends.items()]
        groups = ["thoughts"] * len(texts)
        logs = choice_logprobs(base, texts, ["A", "B"], batch_size, groups).numpy()
        p_first[list(ends)] = 1 / (1 + np.exp(logs[:, 1] - logs[:, 0]))
    return p_first


def _heard(samples: np.ndarray) -> np.ndarray:
    return ~np.isnan(samples).all(1)


def _mean_heard(samples: np.ndarray) -> np.ndarray:
    """Mean over the samples with a verdict, (pairs,); 0 where there is none."""
    return np.nansum(samples, 1) / np.maximum((~np.isnan(samples)).sum(1), 1)


def _one_order(item: Work, number: int) -> tuple[str, str, str, str]:
    """Prompt, first answer, second answer and principle, the answers swapped for odd numbers."""
    pair, principles = item
    first, second = (pair.b, pair.a) if number % 2 else (pair.a, pair.b)
    return pair.prompt, first, second, principles[0].principle


def pointwise(
    base: Base,
    work: Sequence[Work],
    batch_size: int,
    temperature: float = 1.0,
    few_shots: bool = False,
) -> Labels:
    """P(A) = σ of the mean difference, over principles, of log P(Yes) − log P(No), over T."""
    asked = [
        (pair.prompt, answer, _question(principle))
        for pair, principles in work
        for principle in principles
        for answer in (pair.a, pair.b)
    ]
    once = list(dict.fromkeys(asked))  # an answer may stand in many pairs
    about = [(prompt, answer) for prompt, answer, _ in once]
    found = dict(zip(once, yes_margins(base, once, batch_size, about, few_shots), strict=True))
    margins = np.array([found[one] for one in asked]).reshape(len(work), -1, 2)
    p_a = 1 / (1 + np.exp((margins[:, :, 1] - margins[:, :, 0]).mean(1) / temperature))
    return Labels(settled(work, p_a), {"margins": margins.reshape(len(work), -1)})


def yes_margins(
    base: Base,
    asked: Sequence[tuple[str, str, str]],
    batch_size: int,
    about: Sequence[object],
    few_shots: bool = False,
) -> np.ndarray:
    """log P(Yes) − log P(No), (rows,), of prompts, answers and questions about them.

    `about` names the rows that are read together, which is those on one answer.
    """
    texts = [
        base.render(
            [
                *(pointwise_examples(question) if few_shots else ()),
                *pointwise_chat(prompt, answer, question),
            ]
        )
        for prompt, answer, question in asked
    ]
    logs = choice_logprobs(base, texts, ["Yes", "No"], batch_size, about).numpy()  # type: ignore[arg-type]
    return logs[:, 0] - logs[:, 1]


def pointwise_temperature(base: Base, pairs: Sequence[ContrastPair], batch_size: int) -> float:
    """The temperature under which `QUESTION`'s margins are calibrated on pairs, good over bad."""
    asked = [(p.prompt, answer, QUESTION) for p in pairs for answer in (p.good, p.bad)]
    margins = yes_margins(base, asked, batch_size, range(len(asked))).reshape(-1, 2)
    return fit_temperature(margins[:, 0] - margins[:, 1])


def _question(principle: Principle) -> str:
    """The principle's own question; for principles without one, whether it was followed."""
    return principle.question or f"Does the response follow this rule: {principle.principle}"


def contrast(base: Base, reader: Reader, work: Sequence[Work], batch_size: int) -> Labels:
    """P(A) = σ of the mean difference, over principles, of the reader's calibrated readings."""
    said = [(pair.prompt, answer) for pair, _ in work for answer in (pair.a, pair.b)]
    once = list(dict.fromkeys(said))  # an answer may stand in many pairs
    prompts, answers = zip(*once, strict=True)
    states = answer_states(base, prompts, answers, reader.layers, batch_size)
    found = dict(zip(once, reader.logits(states), strict=True))
    logits = np.array([found[one] for one in said]).reshape(len(work), 2, -1)  # pairs, answers
    read = [both[:, reader.places(drawn)] for both, (_, drawn) in zip(logits, work, strict=True)]
    p_a = np.array([1 / (1 + np.exp((b - a).mean())) for a, b in read])
    return Labels(settled(work, p_a), {"logits": np.array([both.mean(1) for both in read])})


def mixed(contrast: Labels, pointwise: Labels, weight: float) -> Labels:
    """Both labels' log-odds, contrast's with `weight` and pointwise's with the rest of 1.

    Contrast stands for harmlessness, pointwise, asked `QUESTION`, for helpfulness and honesty.
    """
    sure = [np.clip(p, 1 - _SURE, _SURE) for p in (contrast.p_a, pointwise.p_a)]
    odds = [np.log(p / (1 - p)) for p in sure]
    p_a = 1 / (1 + np.exp(-(weight * odds[0] + (1 - weight) * odds[1])))
    return Labels(p_a, contrast.scores | pointwise.scores)


def settled(work: Sequence[Work], p_a: np.ndarray) -> np.ndarray:
    """P(A) of each pair, (pairs,), where an answer is none: nearly 0 or 1, or 0.5 if both are."""
    none = np.array(
        [[no_answer(pair.prompt, text) for text in (pair.a, pair.b)] for pair, _ in work]
    )
    a, b = none[:, 0], none[:, 1]
    return np.select([a & b, a, b], [0.5, 1 - _SURE, _SURE], p_a)


def no_answer(prompt: str, text: str) -> bool:
    """Whether a text is silence, a loop, or the prompt given back."""
    return not words(text) or says_nothing_new(text) or gives_back(text, prompt)
