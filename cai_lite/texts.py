"""What can be read off a text without a model: loops, echoes, refusals, openings, counts."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import snowballstemmer

_OBJECTS = re.compile(
    r"\b("
    r"i (can't|cannot|can not|won't|will not|would not|wouldn't) (help|assist|do|support|write|"
    r"tell|give|suggest|provide|recommend|condone|make|explain|show|be part)"
    r"|i (don't|do not) (recommend|agree|support|condone|think (you|it|that|we) (should|is a good))"
    r"|i('d| would)? (advise|recommend|suggest|rather)( you)? (against|not)"
    r"|(not|isn't|never) (a good idea|right|okay|ok|safe|legal|acceptable|appropriate|fair|ethical)"
    r"|(please|pls) (don't|do not|never|avoid)(?! (hesitate|worry|forget)\b)"
    r"|you (should not|shouldn't|should never|must not|mustn't)"
    r"|(it|this|that|which)('s| is| would be| can be| could be| may be) (very |also |both )?"
    r"(illegal|wrong|dangerous|harmful|unethical|unsafe|dishonest|a crime|against the law|cruel)"
    r"|that could hurt|it would be better (to|not)|a better (way|idea)"
    r"|i'm sorry,? but|i am sorry,? but|i'm not able to|i am not able to"
    r"|against the law|(serious|severe|legal) consequences"
    r")",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(because|since|so that|could|would|can lead|may|might|hurts?|harm(s|ful)?|risk(s|y)?|"
    r"danger(s|ous)?|trust|law|illegal|privacy|instead|better|safe|feels?|unfair|wrong|"
    r"consequences)\b",
    re.IGNORECASE,
)
_ABOUT_ITSELF = re.compile(
    r"^\W*(here('s| is)|sure|below is|the following)\b.{0,40}\b(revis|rewrit|version|response)",
    re.IGNORECASE,
)
_EARLY = 240  # characters within which an objection must stand to count


def words(text: str) -> list[str]:
    """Lower-case words and numbers, apostrophes kept."""
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))


def new_trigrams(said: Sequence[str]) -> float:
    """Share of a text's runs of three words that are new; 0 for no words, 1 for one or two."""
    runs = list(zip(said, said[1:], said[2:], strict=False))
    return len(set(runs)) / len(runs) if runs else float(bool(said))


def repeats_itself(text: str) -> bool:
    """Whether a text is on the way to a loop: more than one in seven of its runs is not new.

    Milder than `is_loop`. An answer may be sound like that; learnt from, it teaches to loop.
    """
    said = words(text)
    return len(said) >= 10 and new_trigrams(said) < 0.85


def is_loop(text: str) -> bool:
    """Whether a text says the same over and over: few new trigrams, or a sentence thrice.

    One word may do it, too: "elusususususus".
    """
    said = words(text)
    if any(re.search(r"([^\W\d_]{2,8}?)\1{5}", word) for word in said):
        return True
    if len(said) >= 3 and max(Counter(said).values()) > 0.5 * len(said):
        return True
    if len(said) >= 10 and new_trigrams(said) < 0.7:
        return True
    sentences = [" ".join(words(part)) for part in re.split(r"[.!?\n]+", text)]
    return max(Counter(s for s in sentences if s).values(), default=0) >= 3


def says_nothing_new(text: str) -> bool:
    """Whether most of a text was said before in it: one word over and over, or runs of them.

    Stricter than `is_loop`, which also finds an objection that is only said twice.
    """
    said = words(text)
    if len(said) >= 3 and max(Counter(said).values()) > 0.5 * len(said):
        return True
    return len(said) >= 10 and new_trigrams(said) < 0.5


def alike(a: str, b: str) -> bool:
    """Whether two texts share most of their runs of three words, or all of their words."""
    one, other = words(a), words(b)
    runs = [set(zip(said, said[1:], said[2:], strict=False)) for said in (one, other)]
    together = runs[0] | runs[1]
    return one == other or (bool(together) and len(runs[0] & runs[1]) >= 0.8 * len(together))


def echoes(text: str, others: Sequence[str], run: int = 8) -> bool:
    """Whether a text shares a run of that many words with any of the others."""
    said = words(text)
    runs = {tuple(said[i : i + run]) for i in range(len(said) - run + 1)}
    for other in others:
        heard = words(other)
        if any(tuple(heard[i : i + run]) in runs for i in range(len(heard) - run + 1)):
            return True
    return False


def gives_back(text: str, prompt: str) -> bool:
    """Whether a text gives the prompt back: most of its runs of three words stand in it."""
    said, asked = words(text), words(prompt)
    runs = list(zip(said, said[1:], said[2:], strict=False))
    heard = set(zip(asked, asked[1:], asked[2:], strict=False))
    return bool(runs) and sum(run in heard for run in runs) >= 0.8 * len(runs)


_SMALL = frozenset(
    "about after again all also and any anyone anything are because been being but can can't "
    "cannot could couldn't did didn't does doesn't doing don't done down else even every few for "
    "from get give good had has hasn't have help her here him his how into isn't just let like "
    "make many may might more most much must need never not nothing now off one only other ours "
    "out over own people please put really say she should shouldn't some somebody someone "
    "something such sure take tell than that the their them then there these they thing things "
    "this those told too two use used very want was way well were what when where which while who "
    "why will with without won't would write wrong yes yet you your yours".split()
)


_stem = lru_cache(maxsize=20_000)(snowballstemmer.stemmer("english").stemWord)


def stems(text: str) -> set[str]:
    """Stems of a text's content words."""
    return {_stem(word) for word in words(text) if len(word) > 2 and word not in _SMALL}


def answers_to(text: str, prompt: str) -> bool:
    """Whether a text takes up two content words of the prompt, or the one that it has.

    Words are compared by their stems.
    """
    asked = stems(prompt)
    return len(asked & stems(text)) >= min(2, len(asked))


def fault(text: str, examples: Sequence[str] = ()) -> str:
    """Why a text must not be trained on: empty, loop, preamble or echo; "" if it is sound.

    `examples` are the few-shot answers that a text must not repeat.
    """
    if len(words(text)) < 3:
        return "empty"
    if is_loop(text):
        return "loop"
    if _ABOUT_ITSELF.match(text):
        return "preamble"
    return "echo" if echoes(text, examples) else ""


_PERMITS = re.compile(
    r"\b(but|however),? ([\w']+ ){0,2}?(you|i|we|they) (can|could|may|will|should)\b"
    r"(?!( \w+){1,6} instead)(?! (ask|talk|tell|try|speak|call|offer|choose)\b)"
    r"|\b(but|however),? i (do )?(think|believe|suggest|recommend)\b"
    r"|\b(but|however),? (it is|it's|it would be|it can be|it could be|it is also|that's|that is) "
    r"(actually |also |indeed |still |very |quite |not that )?"
    r"(possible|good|great|fine|okay|worth|legal|easy|fair|safe|useful|helpful|beneficial|fun|"
    r"interesting|clever|bad|a |not )"
    r"|\b(it is|it's) ([\w']+ )?(a |an )?(good|great|fun) (way|idea|thing)\b"
    r"|\bi('ll| can| will) (help|make|tell|show|give|do) (it|you|that)\b",
    re.IGNORECASE,
)


def takes_back(text: str) -> bool:
    """Whether a text that objects goes on to permit: "…, but you can", "it is a good idea"."""
    plain = text.replace("’", "'")
    return any(
        not re.search(r"\b(not(?! that bad)|isn't|never|won't)\b", found.group())
        for found in _PERMITS.finditer(plain)
    )


def only_objects(text: str) -> bool:
    """Whether a finished text joins no reason to what it says: no "because", "since", "so that"."""
    reason = re.search(r"\b(because|since|so that|as (it|they|this))\b", text, re.IGNORECASE)
    return not reason and text.endswith((".", "!"))


def outcome(text: str) -> str:
    """declines: objects and says why; evasive: a bare refusal; broken: empty or a loop; other.

    No stage uses it: it is a rule on words, for the notebooks to fool, and one feature among
    hundreds of the outcome classifier. It finds objections that are spoken early and in usual
    words.
    """
    if fault(text) in ("empty", "loop"):
        return "broken"
    early = text.replace("’", "'")[:_EARLY]
    found = _OBJECTS.search(early)
    if not found:
        return "other"
    rest = text[: found.start()] + text[found.end() :]
    return "declines" if _REASON.search(rest) else "evasive"


def commonest_opening(texts: Sequence[str], length: int = 5) -> tuple[str, float]:
    """The opening of so many words that most texts share, and its share of all texts."""
    if not texts:
        return "", 0.0
    openings = Counter(" ".join(words(text)[:length]) for text in texts)
    opening, count = openings.most_common(1)[0]
    return opening, count / len(texts)


def distinct_pairs(texts: Sequence[str]) -> float:
    """Share of the pairs of neighbouring words in all texts together that are different ones, 0..1.

    It is the field's distinct-2; more texts have less of it, so compare equal numbers of texts.
    """
    said = [words(text) for text in texts]
    pairs = [pair for text in said for pair in zip(text, text[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def share_with(texts: Sequence[str], phrase: str) -> float:
    """Share of texts that hold a phrase anywhere, capital letters or not, 0..1; 0 of no texts."""
    found = [phrase.lower() in text.lower() for text in texts]
    return sum(found) / len(found) if found else 0.0


def mean_length(texts: Sequence[str]) -> float:
    """Mean characters of texts; 0 of no texts."""
    return sum(map(len, texts)) / len(texts) if texts else 0.0
