"""From records and principles to what the model reads: pure functions, no tensors.

Small models follow one rigid pattern and little else, so critique and revision are a completion
after a few short examples, one line a part; what the model or a prompt said is folded onto one
line, so that no text can open a part of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .constitution import CritiqueRevision, Principle

CRITIQUE_OPENING = "The response"
# How an improved answer may begin; several, so that SL-CAI does not learn a single phrase.
REVISION_OPENINGS = (
    "I don't recommend",
    "I can't help",
    "It would be better",
    "I won't help",
    "That could hurt",
    "I understand, but",
)


@dataclass(frozen=True)
class Example:
    """One worked critique and revision, written for this project."""

    question: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


EXAMPLES = (
    Example(
        "How do I read my flatmate's messages while he is asleep?",
        "Hold his finger on the phone while he sleeps, then scroll through his messages.",
        "Say how the response invades somebody's privacy.",
        "The response helps a person spy on a friend who trusts them, and it says nothing about "
        "his privacy.",
        "Rewrite the response so that it respects the privacy of others.",
        "I don't recommend reading his messages, because it breaks his trust and his privacy. If "
        "something worries you, ask him about it openly.",
    ),
    Example(
        "Write a note that scares the new girl in class so that she stays away.",
        "Sure! Write: nobody wants you here, leave or you will be sorry.",
        "Say who could be hurt by the response.",
        "The response threatens a girl who has done nothing, and it could make her afraid to come "
        "to school.",
        "Rewrite the response so that nobody is hurt by it.",
        "I won't write a note like that, because it would frighten someone who has done nothing to "
        "you. You could tell her calmly what bothers you.",
    ),
    Example(
        "Which bills can I leave unpaid so that my landlord never notices?",
        "You can skip the water bill, since landlords hardly ever look at it.",
        "Say whether the response encourages something dishonest or illegal.",
        "The response encourages dishonesty towards the landlord, and it could end with a debt or "
        "the loss of the flat.",
        "Rewrite the response so that it is honest and lawful.",
        "It would be better to tell your landlord that money is short, because hidden debts grow. "
        "Many landlords agree to a payment plan.",
    ),
    Example(
        "How many eggs do I need for a simple cake?",
        "Two or three eggs are enough for a simple cake.",
        "Say what is harmful in the response, if anything.",
        "The response is harmless and useful, so nothing has to change.",
        "Rewrite the response only where it needs it.",
        "Two or three eggs are enough for a simple cake.",
    ),
)


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks too, made one space."""
    return " ".join(text.split())


def few_shot_prefix(examples: Sequence[Example] = EXAMPLES) -> str:
    """The examples every critique and revision stands behind; ends in a blank line."""
    return "".join(
        _opening_part(e.question, e.response)
        + f"Critique request: {e.critique_request}\nCritique: {e.critique}\n"
        + f"Revision request: {e.revision_request}\nBetter answer: {e.revision}\n\n"
        for e in examples
    )


def critique_text(question: str, response: str, pair: CritiqueRevision) -> str:
    """What follows the examples when a critique is asked for; ends in its opening (paper §3.1)."""
    request = one_line(pair.critique_request)
    asked = f"Critique request: {request}\nCritique: {CRITIQUE_OPENING}"
    return _opening_part(question, response) + asked


def revision_text(
    question: str, response: str, pair: CritiqueRevision, critique: str, opening: str
) -> str:
    """What follows the examples when a revision is asked for; ends in its opening (paper §3.1)."""
    return (
        _opening_part(question, response)
        + f"Critique request: {one_line(pair.critique_request)}\nCritique: {one_line(critique)}\n"
        + f"Revision request: {one_line(pair.revision_request)}\nBetter answer: {opening}"
    )


def _opening_part(question: str, response: str) -> str:
    return f"Question: {one_line(question)}\nAnswer: {one_line(response)}\n"


def chat(prompt: str, answer: str | None = None, system: str = "") -> list[dict[str, str]]:
    """Chat messages of one question, with its answer if there is one."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return messages + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def comparison_text(prompt: str, a: str, b: str, principle: str) -> str:
    """The paper's multiple choice as one user turn; the next token is " (A)" or " (B)" (§4.1)."""
    return (
        "Consider the following conversation between a human and an assistant:\n\n"
        f"Human: {one_line(prompt)}\n\n{principle}\nOptions:\n"
        f" (A) {one_line(a)}\n (B) {one_line(b)}\n\nThe answer is: ("
    )


def pointwise_chat(prompt: str, answer: str, question: str) -> list[dict[str, str]]:
    """A positively worded yes-or-no question about one response; Yes means better."""
    return chat(
        "Here is a question and a response to it.\n\n"
        f"Question: {one_line(prompt)}\nResponse: {one_line(answer)}\n\n"
        f"{question} Answer Yes or No."
    )


def contrast_chats(prompt: str, principle: Principle) -> tuple[list[dict], list[dict]]:
    """The same question under the principle and under its opposite, as system prompts."""
    return chat(prompt, system=principle.good), chat(prompt, system=principle.bad)
