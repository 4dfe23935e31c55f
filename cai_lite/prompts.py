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
    """One worked critique and revision, written for this project.

    Where the response is `fine` already, the critique says so and the revision is the response.
    """

    question: str
    response: str
    critique: str
    revision: str

    @property
    def fine(self) -> bool:
        """Whether the response needed no change."""
        return self.revision == self.response


EXAMPLES = (
    Example(
        "How do I read my flatmate's messages while he is asleep?",
        "Hold his finger on the phone while he sleeps, then scroll through his messages.",
        "The response hurts the flatmate, because it breaks into his private life while he cannot "
        "defend himself.",
        "His messages are his own, and he would feel betrayed if you read them in secret. Tell him "
        "in the morning what is worrying you.",
    ),
    Example(
        "Write a note that scares the new girl in class so that she stays away.",
        "Sure! Write: nobody wants you here, leave or you will be sorry.",
        "The response hurts the new girl, because a threat makes her afraid to come to class.",
        "I won't write a threat: it would frighten somebody who knows no one yet. How about a line "
        "that asks for some room, kindly?",
    ),
    Example(
        "What is a good snack before a long run?",
        "A banana an hour before the run is easy to digest and gives you energy.",
        "The response is fine, because it answers the question and harms nobody.",
        "A banana an hour before the run is easy to digest and gives you energy.",
    ),
    Example(
        "How can I light fireworks inside the house?",
        "Put them in a pot on the kitchen floor and step back quickly.",
        "The response hurts everyone in the house, because fireworks indoors set rooms on fire.",
        "Fireworks indoors can set the house on fire and burn your hands. Watch a display in the "
        "open, from behind the barrier.",
    ),
    Example(
        "My cat scratched me. Should I be worried?",
        "Wash the scratch with soap, and see a doctor if it swells, turns red or feels hot.",
        "The response is fine, because its advice is careful and easy to follow.",
        "Wash the scratch with soap, and see a doctor if it swells, turns red or feels hot.",
    ),
    Example(
        "Which bills can I leave unpaid so that my landlord never notices?",
        "You can skip the water bill, since landlords hardly ever look at it.",
        "The response hurts the landlord, because somebody else pays the debt in the end.",
        "Unpaid bills come back with fees, and your landlord may have to cover them. Ask the water "
        "company for smaller payments instead.",
    ),
)
_ASKED = (
    "Say what is harmful about the last response, or that it is fine.",
    "Write the response again without the harm, or as it is if it is fine.",
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


def sentence_ends(opening: str) -> int:
    """How many sentences an opening brings to their end: one in "Ahoy, shipmate!"."""
    return len(re.findall(r"[.!?]+", opening))


def chat(prompt: str, answer: str | None = None, system: str = "") -> Messages:
    """Chat messages of one question, with its answer if there is one."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return messages + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def few_shot_prefix(examples: Sequence[Example] = EXAMPLES) -> str:
    """The examples a small model's critique stands behind; ends in a blank line.

    Those whose response is fine are left out: a small model is made to begin with the harm.
    """
    return "".join(
        f"Question: {e.question}\nAnswer: {e.response}\nCritique: {e.critique}\n\n"
        for e in examples
        if not e.fine
    )


def critique_text(question: str, response: str, opening: str) -> str:
    """What follows the examples when a small model is asked for a critique; ends in its opening."""
    return f"Question: {one_line(question)}\nAnswer: {one_line(response)}\nCritique: {opening}"


def revision_chat(
    question: str, critique: str, pair: CritiqueRevision, constitution: Constitution
) -> Messages:
    """The question again, under critique, the constitution's spirit and the revision request.

    Of the critique only what comes before its reason is used: a small model gives wrong reasons and
    repeats them. Without a critique the revision is direct (the paper's Fig 7).
    """
    harm = one_line(critique).split(", because")[0].rstrip(".")
    said = f"Somebody gave a bad answer. {harm}. " if critique else ""
    system = f"{said}{constitution.spirit} {one_line(pair.revision_request)}"
    return chat(question, system=system)


def critique_dialogue(question: str, response: str, pair: CritiqueRevision) -> Messages:
    """The paper's layout as chat turns: the answer, then the critique request (§3.1)."""
    return [*chat(question, response), {"role": "user", "content": pair.critique_request}]


def revision_dialogue(
    question: str, response: str, pair: CritiqueRevision, critique: str
) -> Messages:
    """The paper's layout as chat turns, up to the revision request (§3.1).

    Without a critique the revision request follows the answer at once (Fig 7).
    """
    asked = {"role": "user", "content": f"{pair.revision_request} Reply with the new answer alone."}
    if not critique:
        return [*chat(question, response), asked]
    said = {"role": "assistant", "content": critique}
    return [*critique_dialogue(question, response, pair), said, asked]


def dialogue_prefix(critique: bool = True, examples: Sequence[Example] = EXAMPLES) -> str:
    """Worked dialogues in the paper's completion layout, with or without their critiques."""
    turns = []
    for e in examples:
        pair = CritiqueRevision(id="-", critique_request=_ASKED[0], revision_request=_ASKED[1])
        said = e.critique if critique else ""
        turns.append(f"{revision_turns(e.question, e.response, pair, said)} {e.revision}")
    return "".join(turns)


def critique_turns(question: str, response: str, pair: CritiqueRevision) -> str:
    """The paper's completion layout up to where the critique begins (§3.1)."""
    return (
        f"\n\nHuman: {one_line(question)}\n\nAssistant: {one_line(response)}"
        f"\n\nCritiqueRequest: {one_line(pair.critique_request)}\n\nCritique:"
    )


def revision_turns(question: str, response: str, pair: CritiqueRevision, critique: str) -> str:
    """The paper's completion layout up to where the revision begins, direct without a critique."""
    said = (
        f"{critique_turns(question, response, pair)} {one_line(critique)}"
        if critique
        else (f"\n\nHuman: {one_line(question)}\n\nAssistant: {one_line(response)}")
    )
    return f"{said}\n\nRevisionRequest: {one_line(pair.revision_request)}\n\nRevision:"


def comparison_text(prompt: str, a: str, b: str, principle: str) -> str:
    """The paper's multiple choice; the next token is "A" or "B" (§4.1)."""
    return f"{_options(prompt, a, b, principle)}\n\nThe answer is: ("


def thought_text(prompt: str, a: str, b: str, principle: str) -> str:
    """The paper's comparison by chain of thought, up to where the reasoning begins (§4.1)."""
    return f"{_options(prompt, a, b, principle)}\n\nLet's think step by step:"


def _options(prompt: str, a: str, b: str, principle: str) -> str:
    return (
        "Consider the following conversation between a human and an assistant:\n\n"
        f"Human: {one_line(prompt)}\n\n{principle}\nOptions:\n"
        f" (A) {one_line(a)}\n (B) {one_line(b)}"
    )


def judge_chat(prompt: str, a: str, b: str) -> Messages:
    """A comparison for a model behind an endpoint, whose first token is to be "A" or "B".

    Unlike the paper's crowdworkers it is told in words what they were told: less harmful first, and
    of two that do no harm the one that does not evade.
    """
    asked = (
        "Which answer is less harmful? If neither does harm, which is more helpful and less "
        "evasive?"
    )
    rule = "Reply with the letter A or the letter B alone."
    return chat(f"{_options(prompt, a, b, asked)}\n\n{rule}", system=rule)


VERDICT = "So the answer is: ("


def comparison_prefix(thoughts: bool, examples: Sequence[Example] = EXAMPLES) -> str:
    """Worked comparisons of a response with its revision, in turns the first and the second.

    With `thoughts` each is argued before its verdict. Those whose response is fine are left out.
    """
    unlike = [e for e in examples if not e.fine]
    return "".join(_worked(e, "AB"[i % 2], thoughts) for i, e in enumerate(unlike))


def _worked(e: Example, better: str, thoughts: bool) -> str:
    a, b = (e.revision, e.response) if better == "A" else (e.response, e.revision)
    asked = "Choose the response that hurts nobody and says why."
    if not thoughts:
        return f"{comparison_text(e.question, a, b, asked)}{better})\n\n"
    harm = e.critique.removeprefix("The response").strip()
    worse = "B" if better == "A" else "A"
    why = f"Response ({worse}) {harm} Response ({better}) does not, and it gives a reason."
    return f"{thought_text(e.question, a, b, asked)} {why} {VERDICT}{better})\n\n"


def split_verdict(text: str) -> tuple[str, str] | None:
    """(reasoning, "A" or "B") of a thought that ends in one verdict; None for any other text.

    No reasoning, no verdict, several verdicts or anything behind it on its line: no label.
    """
    thought = text.split("\n\n")[0].strip()
    found = re.fullmatch(
        r"(?P<why>.*\w.*?)\s*So the answer is: \((?P<best>[AB])\)\.?", thought, re.DOTALL
    )
    if not found or "so the answer is" in found["why"].lower():
        return None
    return found["why"], found["best"]


def pointwise_chat(prompt: str, answer: str, question: str) -> Messages:
    """A positively worded yes-or-no question about one response; Yes means better."""
    return chat(
        "Here is a question and a response to it.\n\n"
        f"Question: {one_line(prompt)}\nResponse: {one_line(answer)}\n\n"
        f"{question} Answer Yes or No."
    )


def pointwise_examples(question: str, examples: Sequence[Example] = EXAMPLES) -> Messages:
    """The question asked and answered of worked responses: No of a harmful one, Yes of others."""
    asked = [
        message
        for i, e in enumerate(examples)
        for message in (
            pointwise_chat(e.question, e.revision if i % 2 else e.response, question)[0],
            {"role": "assistant", "content": "Yes" if i % 2 or e.fine else "No"},
        )
    ]
    return asked


def contrast_chats(prompt: str, principle: Principle) -> tuple[Messages, Messages]:
    """The same question under the principle and under its opposite, as system prompts."""
    return chat(prompt, system=principle.good), chat(prompt, system=principle.bad)
