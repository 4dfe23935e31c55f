"""What the exercises of the notebooks are checked with: each check knows the usual mistakes.

A check takes the reader's function, tries it on small numbers, and says in one sentence what is
wrong, or that it is right. A stub that returns None is "not attempted yet", never an error.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..constitution import parse_constitution
from ..errors import InputError
from ..texts import outcome, words


class Verdict(str):
    """A sentence that a notebook shows without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


NOT_YET = Verdict("○ not attempted yet")


def _right(what: str) -> Verdict:
    return Verdict(f"✓ {what}")


def _wrong(why: str) -> Verdict:
    return Verdict(f"✗ {why}")


def rl_advantages(function: Callable[[Sequence[float]], Any]) -> Verdict:
    """Notebook 05: leave-one-out advantages of the rewards of one prompt's completions."""
    rewards = np.array([1.0, 3.0, 2.0, 6.0])
    answer = function(rewards.tolist())
    if answer is None:
        return NOT_YET
    others = (rewards.sum() - rewards) / 3
    mistakes = [
        (rewards - rewards.mean(), "your baseline contains the sample itself: leave it out"),
        (others - rewards, "the sign is turned round: a reward above the others' is good news"),
        (rewards - others * 3 / 4, "the others are one fewer: divide their sum by n − 1, not by n"),
        (rewards - others * 3, "you subtracted the others' sum; the baseline is their mean"),
        (others, "these are the baselines; subtract them from the rewards"),
    ]
    return _judged(answer, rewards - others, mistakes, "leave-one-out: they sum to zero, too")


def rl_penalised_reward(function: Callable[..., Any]) -> Verdict:
    """Notebook 05: reward − β·KL, with KL the masked sum of log π − log ref over one completion."""
    logps, ref = np.array([-1.0, -2.0, -3.0, -9.0]), np.array([-2.5, -2.4, -3.1, -1.0])
    answer = function(2.0, logps, ref, np.array([1, 1, 1, 0]), 0.1)
    if answer is None:
        return NOT_YET
    mistakes = [  # the difference is 1.5, 0.4, 0.1 and, behind the mask, −8
        (0.0, "forgot the KL coefficient? The penalty is β times the KL"),
        (2.2, "the sign is turned round: drift must cost reward, and drift is log π − log ref"),
        (2.6, "you counted the token behind the mask, which is padding"),
        (2.0 - 0.2 / 3, "you took the mean over the tokens; the KL of a completion is their sum"),
        (1.95, "you took the mean over the tokens; the KL of a completion is their sum"),
        (0.2, "this is the penalty alone; subtract it from the reward"),
        (2.0, "this is the reward without any penalty"),
    ]
    return _judged(answer, 1.8, mistakes, "reward − β·KL, padding left out")


def _judged(answer: Any, right: Any, mistakes: Sequence[tuple[Any, str]], praise: str) -> Verdict:
    """The mistake whose numbers these are, or praise for the right ones."""
    try:
        found = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        return _wrong(f"expected numbers, got {type(answer).__name__}")
    wanted = np.asarray(right, dtype=float)
    if found.shape != wanted.shape:
        return _wrong(f"expected the shape {wanted.shape}, got {found.shape}")
    if np.allclose(found, wanted, atol=1e-4):
        return _right(praise)
    known = [why for value, why in mistakes if np.allclose(found, value, atol=1e-4)]
    return _wrong(known[0] if known else f"expected {wanted.round(3)}, got {found.round(3)}")


def evaluation_paired(function: Callable[[dict[str, int], dict[str, int]], Any]) -> Verdict:
    """Notebook 06: one difference a prompt, of two models' results by prompt id."""
    later, earlier = {"a": 1, "b": 0, "c": 1, "d": 1}, {"d": 1, "c": 0, "b": 1, "a": 0}
    answer = function(later, earlier)
    if answer is None:
        return NOT_YET
    mistakes = [
        ([0, 0, 0, 1], "you paired different prompts: match the two models by prompt id"),
        ([-1, 1, -1, 0], "the sign is turned round: later minus earlier"),
        ([1, 1, 1, 0], "you dropped the sign: a prompt that got worse must count against"),
    ]
    if np.ndim(answer) == 0:
        return _wrong("that is one number; the bootstrap needs the difference of every prompt")
    return _judged(list(answer), [1, -1, 1, 0], mistakes, "paired by prompt, later minus earlier")


def evaluation_sentence(function: Callable[[float, float, float, int], str | None]) -> Verdict:
    """Notebook 06: a sentence on a difference that says how sure, and claims no more."""
    clear = function(0.21, 0.05, 0.37, 63)
    unclear = function(0.08, -0.12, 0.29, 24)
    if clear is None or unclear is None:
        return NOT_YET
    for text, numbers in ((clear, ("0.05", "0.37", "63")), (unclear, ("0.12", "0.29", "24"))):
        if re.search(r"\bharmless\b", text, re.IGNORECASE):
            return _wrong("nothing here was shown to be harmless: name the measure that moved")
        missing = [number for number in numbers if number not in text]
        if missing:
            return _wrong(f"the reader needs the interval and n: {missing[0]} is not in {text!r}")
    doubt = re.compile(r"zero|could not|cannot|can't|no (clear|sure|evidence)|not (sure|clear)")
    if not doubt.search(unclear.lower()):
        return _wrong("the interval [−0.12, 0.29] includes zero, and the sentence does not say so")
    if doubt.search(clear.lower()):
        return _wrong("the interval [0.05, 0.37] excludes zero: there the sentence may say more")
    return _right("it names the interval and n, and admits when zero is inside")


def evaluation_fool(text: str) -> Verdict:
    """Notebook 06: a text that helps all the way and fools the rule on words."""
    if not text:
        return NOT_YET
    if len(words(text)) < 12:
        return _wrong("a dozen words at least: an answer that short helps nobody")
    if outcome(text) not in ("declines", "evasive"):
        return _wrong(f"the rule was not fooled: it says {outcome(text)!r}; see cai_lite/texts.py")
    return _right(f"the rule says {outcome(text)!r}. Would a person? That is why we read answers")


def _left_alone(answer: Any) -> bool:
    """Whether a stub gave this answer."""
    return answer is None or answer is ...


# --- notebook 01, critique and revision ---


def critique_drawing(drawn: Callable[[Sequence[str], int, int], Sequence[str]]) -> Verdict:
    """Check `drawn(principles, n, seed)`: n independent draws with replacement, from the seed."""
    names = [f"principle {i}" for i in range(16)]
    first = drawn(names, 16, 0)
    if _left_alone(first):
        return NOT_YET
    draws = [list(drawn(names, 16, seed)) for seed in range(20)]
    if any(len(one) != 16 or not set(one) <= set(names) for one in draws):
        return _wrong("expected a list of n of the given principles")
    if list(drawn(names, 16, 0)) != list(first):
        return _wrong("the same seed gave two different draws: is random.Random(seed) used?")
    if len({tuple(one) for one in draws}) == 1:
        return _wrong("every seed gives the same draw: the seed is not used")
    if all(len(set(one)) == 1 for one in draws):
        return _wrong("one principle was drawn for all: draw again for each text")
    if all(len(set(one)) == 16 for one in draws):
        return _wrong("no principle ever came twice: that is sampling WITHOUT replacement")
    return _right("independent, with replacement, and the same for the same seed")


def critique_leak(leaks: Callable[[str, str], bool]) -> Verdict:
    """Check `leaks(text, request)`: a run of five words of the request stands in the text."""
    request = "Write the response again with safety first. Advise against the dangerous step."
    copied = "You shouldn't swim there. write the response again, with safety first."
    sound = "You shouldn't swim there. Write to the guard first: the dangerous step is the pier."
    if _left_alone(leaks(copied, request)):
        return NOT_YET
    if leaks(sound, request):
        return _wrong("too strict: it drops a sound text that shares some words with the request")
    if not leaks("Don't. " + request, request):
        return _wrong("it misses a text that holds the whole request")
    if not leaks("It is not wise. Write the response again with safety", request):
        return _wrong("it finds the whole request only: a model copies a part and stops")
    if not leaks(copied, request):
        return _wrong("it misses a copy in small letters or with another comma: compare words(…)")
    if leaks("", request):
        return _wrong("an empty text leaks nothing")
    return _right("it catches copied runs and leaves sound texts alone")


def critique_interval(interval: Callable[[Sequence[float], int, int], Sequence[float]]) -> Verdict:
    """Check `interval(values, draws, seed)`: a 95% bootstrap interval of the mean."""
    found = interval([1.0] * 12 + [0.0] * 12, 4000, 0)
    if _left_alone(found):
        return NOT_YET
    low, high = found
    if high - low < 1e-6:
        return _wrong("the interval has no width: rows were redrawn WITHOUT replacement")
    if (low, high) == (0.0, 1.0):
        return _wrong("these are quantiles of the rows: take the MEAN of every redrawn set")
    if high - low < 0.15:
        return _wrong("far too narrow: a redrawn set has as many rows as there are values")
    if high - low < 0.36:
        return _wrong("too narrow for 95%: cut 2.5% off at each end, not 5%")
    if high - low > 0.46:
        return _wrong("too wide: cut 2.5% off at each end of the means")
    return _right(f"[{low:.2f}, {high:.2f}] for 12 of 24")


# --- notebook 02, SL-CAI ---


def sl_mask(mask: Callable[[int, int, int], Sequence[int]]) -> Verdict:
    """Check `mask(prompt, answer, width)`: 1 on the answer's tokens, 0 on prompt and padding."""
    given = mask(3, 2, 7)
    if _left_alone(given):
        return NOT_YET
    found = [int(one) for one in given]
    known: dict[tuple[int, ...], str] = {
        (1, 1, 1, 0, 0, 0, 0): "turned round: this trains on the prompt, not on the answer",
        (1, 1, 1, 1, 1, 0, 0): "this trains on the prompt too: the model learns to ask for harm",
        (0, 0, 0, 1, 1, 1, 1): "this trains on padding too, which belongs to no text",
        (0, 0, 1, 1, 0, 0, 0): "shifted by one: mark the answer's own places, the loss shifts",
    }
    if len(found) != 7:
        return _wrong(f"{len(found)} places; expected one for each of the 7, padding too")
    if tuple(found) in known:
        return _wrong(known[tuple(found)])
    if found != [0, 0, 0, 1, 1, 0, 0]:
        return _wrong(f"3 of prompt, 2 of answer and 2 of padding cannot give {found}")
    return _right("only the answer counts")


def sl_helpful_rows(needed: Callable[[int, float], float]) -> Verdict:
    """Check `needed(revisions, share)`: helpful rows that make up that share of all rows."""
    found = needed(60, 0.75)
    if _left_alone(found):
        return NOT_YET
    known = {
        45: "45 is 75% of the revisions; 45 of 45 + 60 rows are only 43% helpful",
        20: "20 makes the REVISIONS 75% of all rows: the share is turned round",
        80: "60 / 0.75 = 80 would be all rows, were the revisions 75% of them",
        240: "240 is the number of ALL rows; 60 of them are the revisions",
    }
    if round(found) in known:
        return _wrong(known[round(found)])
    if round(found) != 180:
        return _wrong(f"{found} helpful rows and 60 revisions are not 75% helpful")
    if needed(60, 0.0) != 0:
        return _wrong("with a share of 0 no helpful row is needed")
    return _right("180 of 240 rows")


def sl_lora_size(parameters: Callable[[int, int, int], int]) -> Verdict:
    """Check `parameters(inputs, outputs, rank)`: trained numbers of LoRA on one linear layer."""
    found = parameters(576, 1536, 4)
    if _left_alone(found):
        return NOT_YET
    known = {
        576 * 1536: "that is the frozen matrix itself; LoRA trains two thin ones",
        576 * 1536 * 4: "the sizes do not multiply: A is rank × inputs, B is outputs × rank",
        576 * 4: "that is A alone: B, outputs × rank, is trained too",
        1536 * 4: "that is B alone: A, rank × inputs, is trained too",
    }
    if found in known:
        return _wrong(known[found])
    if found != 4 * (576 + 1536):
        return _wrong(f"{found}? A is rank × inputs, B is outputs × rank: add their sizes")
    return _right("rank × (inputs + outputs) = 8,448 in place of 884,736")


def feedback_both_orders(function: Callable[..., Any]) -> Verdict:
    """Notebook 03: a soft label from (log P("A"), log P("B")), asked in both orders."""
    answer = function(tuple(np.log([0.06, 0.02])), tuple(np.log([0.03, 0.06])))
    if answer is None:
        return NOT_YET
    mistakes = [  # alone, the orders say 3/4 and 1/3 for the answer in front
        (3 / 4, "you used one order only; the second is there to take the position out"),
        ((3 / 4 + 1 / 3) / 2, 'you averaged P("A"): in the second order "A" is the other answer'),
        (1 - (3 / 4 + 2 / 3) / 2, "this is P(B is better), the other way round"),
        (1.0, "this is a hard label; the method keeps the doubt"),
        (0.0, "this is a hard label, and for the wrong answer"),
        (0.06, 'you did not normalise: divide P("A") by P("A") + P("B")'),
        ((0.06 + 1 - 0.03) / 2, 'you did not normalise: divide P("A") by P("A") + P("B")'),
        ((np.log(3) + np.log(2)) / 2, "this is a log-odds: put it through σ"),
    ]
    return _judged(answer, (3 / 4 + 2 / 3) / 2, mistakes, "both orders, normalised, soft")


def feedback_clamp(function: Callable[[float], Any]) -> Verdict:
    """Notebook 03: labels of a chain of thought, clamped to [0.40, 0.60] (paper §4.1)."""
    labels = np.array([0.0, 0.45, 0.5, 0.58, 1.0])
    answers = [function(label) for label in labels.tolist()]
    if all(answer is None for answer in answers):
        return NOT_YET
    mistakes = [
        (0.4 + 0.2 * labels, "you squeezed all labels; a clamp leaves those inside as they are"),
        (np.minimum(labels, 0.6), "the lower bound is missing: a sure B stays at 0"),
        (np.maximum(labels, 0.4), "the upper bound is missing: a sure A stays at 1"),
        (np.where(labels > 0.5, 0.6, 0.4), "every label went to a bound, the tie too"),
        (np.clip(labels, 0.2, 0.8), "these are the paper's first bounds; 0.40 to 0.60 did better"),
    ]
    return _judged(answers, labels.clip(0.4, 0.6), mistakes, "sure labels held back, others kept")


def feedback_kappa(function: Callable[[Sequence[str], Sequence[str]], Any]) -> Verdict:
    """Notebook 03: Cohen's kappa, agreement beyond what the two shares of "A" give by chance."""
    answer = function(list("AAAAAABB"), list("AAAABAAB"))
    if answer is None:
        return NOT_YET
    mistakes = [  # they agree on 6 of 8, and both say A in 6 of 8
        (0.75, "this is raw agreement: two who always say A agree too"),
        (0.5, "chance is not one half: it is P(both say A) + P(both say B)"),
        (0.125, "divide by what was left to gain, 1 − chance"),
        (0.625, "this is the agreement by chance alone"),
        ((0.75 - 0.5625) / 0.4375, "by chance they can agree on B, too: add P(both say B)"),
    ]
    return _judged(answer, 1 / 3, mistakes, "agreement beyond chance")


def preference_gradient(function: Callable[[float, float, float], Any]) -> Verdict:
    """Notebook 04: d loss / d r_A of the soft-label loss of one pair."""
    rewards_a, rewards_b, p_a = np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, -1.0]), 0.6
    pairs = zip(rewards_a.tolist(), rewards_b.tolist(), strict=True)
    answers = [function(a, b, p_a) for a, b in pairs]
    if all(answer is None for answer in answers):
        return NOT_YET
    sure = 1 / (1 + np.exp(rewards_b - rewards_a))
    mistakes = [
        (p_a - sure, "the sign is turned round: this is how r_A should move, not the gradient"),
        (sure - 1, "this is the gradient of a hard label; the label here is 0.6"),
        (rewards_a - rewards_b - p_a, "σ is missing: compare a probability with the label"),
        (sure, "the label is missing: at σ = p the gradient is zero"),
        (1 / (1 + np.exp(-rewards_a)) - p_a, "r_B is missing: only the difference counts"),
        (
            -(p_a * np.log(sure) + (1 - p_a) * np.log(1 - sure)),
            "this is the loss itself; its derivative is shorter",
        ),
    ]
    return _judged(answers, sure - p_a, mistakes, "σ(r_A − r_B) − p: zero when the PM says p")


def preference_sample_size(function: Callable[[float], Any]) -> Verdict:
    """Notebook 04: held-out pairs for a 95% interval of ± half_width around an accuracy of ½."""
    answers = [function(0.1), function(0.05)]
    if all(answer is None for answer in answers):
        return NOT_YET
    right = np.array([96.04, 384.16])
    mistakes = [
        (right**0.5, "square it: half the width costs four times the pairs"),
        (right * 4, "p(1 − p) is 1/4 at p = ½, not 1; or was that the whole width?"),
        (right / 1.96**2, "the 1.96 of a 95% interval is missing"),
        (right / 4, "that is for the whole width; ± means half of it"),
    ]
    near = np.asarray(answers, dtype=float)
    if near.shape == right.shape and (abs(near - right) <= 1).all():
        return _right("about a hundred pairs for ±10 points, four times as many for ±5")
    return _judged(answers, right, mistakes, "")


# --- notebook 07, change the constitution


def constitution_coverage(function: Callable[[np.ndarray, float], Any]) -> Verdict:
    """Notebook 07: share of the pairs on which each principle has something to say."""
    p = np.array([[0.9, 0.2, 0.5, 0.55], [0.45, 0.5, 0.6, 0.5], [0.1, 0.2, 0.8, 0.3]])
    answer = function(p, 0.15)
    if _left_alone(answer):
        return NOT_YET
    mistakes = [
        (
            [0.25, 0, 0.25],
            "a principle that is sure of B has something to say as well: use |p − ½|",
        ),
        ([2, 0, 4], "these are counts; divide by the number of pairs"),
        ([0.5, 1, 0], "turned round: these are the pairs of which it has nothing to say"),
        ([0.75, 0.5, 1], "any p that is not one half counts here: use `least`"),
    ]
    return _judged(answer, [0.5, 0, 1], mistakes, "further than `least` from one half, either way")


def constitution_conflict(function: Callable[[Sequence[float]], Any]) -> Verdict:
    """Notebook 07: how evenly the decided principles split over the two answers of a pair."""
    answers = [function(p) for p in ([0.9, 0.8, 0.4, 0.5, 0.7], [0.6, 0.1], [0.5, 0.5])]
    if all(_left_alone(answer) for answer in answers):
        return NOT_YET
    if answers[2] is None or np.isnan(answers[2]):
        return _wrong("[0.5, 0.5]: nobody is decided, so nothing pulls apart; expected 0")
    mistakes = [
        ([0.1875, 0.25, 0], "one half each should be a conflict of 1: the factor 4 is missing"),
        ([0.96, 1, 0], "an undecided principle, p = ½, is on no side: leave it out of the share"),
        ([0.75, 0.5, 0], "this is the share for A; a conflict is 4·s·(1 − s)"),
        ([0.8976, 0.91, 1], "this takes the mean p; take the share of the principles that want A"),
    ]
    return _judged(answers, [0.75, 1, 0], mistakes, "0 if they agree, 1 if they split evenly")


_NEGATED = re.compile(r"\b(not|no|never|avoid\w*|refus\w+|without)\b|n't\b", re.IGNORECASE)


def constitution_text(text: str) -> Verdict:
    """Notebook 07: a constitution of the reader's own, which a small model can be trained by."""
    if not text.strip():
        return NOT_YET
    try:
        found = parse_constitution(text, "your text")
    except InputError as error:
        return _wrong(str(error))
    if min(len(found.critique_revision), len(found.comparison)) < 2:
        return _wrong("two principles at least to revise by, and two to compare by")
    if len(set(found.revision_openings)) < 3:
        return _wrong("three different revision_openings at least: of one a model makes a tic")
    for principle in found.comparison:
        if not principle.question.endswith("?"):
            return _wrong(
                f"{principle.id}: `question` is what a small labeller is asked; write one"
            )
        if negated := _NEGATED.search(principle.question):
            said = f"{principle.id}: {negated[0]!r} in the question; ask for what the answer does"
            return _wrong(f"{said}, and yes must mean better")
        if not (principle.good and principle.bad):
            return _wrong(f"{principle.id}: `good` and `bad` make the contrast pairs; write both")
    return _right(f"{found.name!r} can be trained by: save it, and run 7.4 and 7.5 anew")


# --- notebook 08, close the loop ---


def loop_distinct(function: Callable[[list[list[str]]], Any]) -> Verdict:
    """Notebook 08: the share of different word pairs in texts, (texts,) of words, distinct-2."""
    answer = function([["no", "no", "no"], ["i", "can't", "help", "i", "can't", "say"]])
    if _left_alone(answer):
        return NOT_YET
    mistakes = [  # 2 + 5 pairs, of which 1 + 4 are different ones
        ((1 / 2 + 4 / 5) / 2, "a mean over texts: one answer said by all would look diverse; pool"),
        (6 / 8, "you paired the end of one text with the beginning of the next"),
        (5 / 9, "these are single words; take pairs of neighbours"),
        (5, "divide by the number of all pairs, or longer answers look more diverse"),
        (1.0, "a pair that comes twice counts once above the line, twice below it"),
        (2 / 7, "this is the share of pairs that had come before"),
    ]
    return _judged(answer, 5 / 7, mistakes, "5 of 7 pairs are different ones")


def loop_last_round(function: Callable[[list[float], float, list[float]], Any]) -> Verdict:
    """Notebook 08: the last round to keep, by agreement with the first labeller and broken answers.

    The function takes the agreement of each round, the least that is allowed, and the share of
    broken answers of each round, round 1 first.
    """
    creeping = function([0.80, 0.78, 0.75, 0.70], 0.66, [0.10, 0.13, 0.16, 0.19])
    if _left_alone(creeping):
        return NOT_YET
    known = {
        4: "broken rose by 3 points in each round and by 9 in all: compare with round 1",
        3: "round 3 is the first that goes wrong (broken +6 points): keep the one before",
    }
    if creeping in known:
        return _wrong(known[creeping])
    if creeping != 2:
        return _wrong(f"expected 2, the last round before broken has risen by 6, got {creeping!r}")
    back = function([0.80, 0.60, 0.90], 0.66, [0.10, 0.10, 0.10])
    if back != 1:
        return _wrong("round 2 fell below 0.66, and round 3 was built on it: keep round 1")
    if function([0.80, 0.70, 0.70], 0.66, [0.10, 0.10, 0.15]) != 3:
        return _wrong("where nothing goes wrong, keep the last: 0.15 is 5 points up, not more")
    return _right("stopped at the first fault, measured from round 1")
