"""From records and principles to what the model reads: pure functions, no tensors.

A large model holds the paper's dialogue: answer, critique request, critique, revision request. A
small one loses its way in it, so it is guided: a critique behind short worked examples, one line a
part, and a revision under a system prompt that states the critique and the principle, both with
forced openings. What a model or a prompt said is folded onto one line there, so that no text can
open a part of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .constitution import Constitution, CritiqueRevision, Principle

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Example:
    """One worked critique, written for this project."""

    question: str
    response: str
    critique: str


EXAMPLES = (
    Example(
        "How do I read my flatmate's messages while he is asleep?",
        "Hold his finger on the phone while he sleeps, then scroll through his messages.",
        "The response hurts the flatmate, because it breaks into his private life while he cannot "
        "defend himself.",
    ),
    Example(
        "Write a note that scares the new girl in class so that she stays away.",
        "Sure! Write: nobody wants you here, leave or you will be sorry.",
        "The response hurts the new girl, because a threat makes her afraid to come to class.",
    ),
    Example(
        "How can I light fireworks inside the house?",
        "Put them in a pot on the kitchen floor and step back quickly.",
        "The response hurts everyone in the house, because fireworks indoors set rooms on fire.",
    ),
    Example(
        "Which bills can I leave unpaid so that my landlord never notices?",
        "You can skip the water bill, since landlords hardly ever look at it.",
        "The response hurts the landlord, because somebody else pays the debt in the end.",
    ),
)


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks too, made one space."""
    return " ".join(text.split())


def first_sentences(text: str, count: int = 2) -> str:
    """The first sentences of a text on one line, repeated ones left out; an unfinished end is cut.

    A text with no finished sentence stays as it is.
    """
    found = re.findall(r"[^.!?]+[.!?]+[\"')]*", one_line(text))
    kept = list(dict.fromkeys(sentence.strip() for sentence in found))[:count]
    return " ".join(kept) or one_line(text)


def chat(prompt: str, answer: str | None = None, system: str = "") -> Messages:
    """Chat messages of one question, with its answer if there is one."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return messages + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def few_shot_prefix(examples: Sequence[Example] = EXAMPLES) -> str:
    """The examples a small model's critique stands behind; ends in a blank line."""
    return "".join(
        f"Question: {e.question}\nAnswer: {e.response}\nCritique: {e.critique}\n\n"
        for e in examples
    )


def critique_text(question: str, response: str, opening: str) -> str:
    """What follows the examples when a small model is asked for a critique; ends in its opening."""
    return f"Question: {one_line(question)}\nAnswer: {one_line(response)}\nCritique: {opening}"


def revision_chat(
    question: str, critique: str, pair: CritiqueRevision, constitution: Constitution
) -> Messages:
    """The question again, under critique, the constitution's spirit and the revision request."""
    system = f"Somebody gave a bad answer. {one_line(critique)} {constitution.spirit}"
    return chat(question, system=f"{system} {one_line(pair.revision_request)}")


def critique_dialogue(question: str, response: str, pair: CritiqueRevision) -> Messages:
    """The paper's layout as chat turns: the answer, then the critique request (§3.1)."""
    return [*chat(question, response), {"role": "user", "content": pair.critique_request}]


def revision_dialogue(
    question: str, response: str, pair: CritiqueRevision, critique: str
) -> Messages:
    """The paper's layout as chat turns, up to the revision request (§3.1)."""
    return [
        *critique_dialogue(question, response, pair),
        {"role": "assistant", "content": critique},
        {"role": "user", "content": f"{pair.revision_request} Reply with the new answer alone."},
    ]


def comparison_text(prompt: str, a: str, b: str, principle: str) -> str:
    """The paper's multiple choice; the next token is "A" or "B" (§4.1)."""
    return (
        "Consider the following conversation between a human and an assistant:\n\n"
        f"Human: {one_line(prompt)}\n\n{principle}\nOptions:\n"
        f" (A) {one_line(a)}\n (B) {one_line(b)}\n\nThe answer is: ("
    )


def pointwise_chat(prompt: str, answer: str, question: str) -> Messages:
    """A positively worded yes-or-no question about one response; Yes means better."""
    return chat(
        "Here is a question and a response to it.\n\n"
        f"Question: {one_line(prompt)}\nResponse: {one_line(answer)}\n\n"
        f"{question} Answer Yes or No."
    )


def contrast_chats(prompt: str, principle: Principle) -> tuple[Messages, Messages]:
    """The same question under the principle and under its opposite, as system prompts."""
    return chat(prompt, system=principle.good), chat(prompt, system=principle.bad)
