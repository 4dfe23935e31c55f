"""Numbers read off the model: log-probabilities of choices and hidden states of answers.

The vocabulary head is computed only where its output is used.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import torch

from ..prompts import chat
from .models import Base
from .packed import packed
from .sampling import last_states, next_logits

_GREETING = "Hello!"


@torch.no_grad()
def end_states(
    base: Base, texts: Sequence[str], batch_size: int, groups: Sequence[Hashable] = ()
) -> torch.Tensor:
    """Last hidden state of each text's last token, (texts, hidden), float32 on the CPU.

    `groups` names texts that begin alike, a name a text: their beginning is read once.
    """
    found = torch.empty(len(texts), base.body.config.hidden_size)
    for rows, states in last_states(base, texts, groups or range(len(texts)), batch_size):
        found[rows] = states.float().cpu()
    return found


@torch.no_grad()
def choice_logprobs(
    base: Base,
    texts: Sequence[str],
    choices: Sequence[str],
    batch_size: int,
    groups: Sequence[Hashable] = (),
) -> torch.Tensor:
    """log P(choice | text) of the next token, shape (texts, choices); each choice is one token.

    All texts end alike. `groups` names texts that begin alike, a name a text: their beginning is
    read once. Without it every text is read whole. Raises ValueError if a choice is more than one
    token.
    """
    ids = [choice_token(base, choice, text) for text in texts[:1] for choice in choices]
    found = torch.empty(len(texts), len(choices))
    for rows, logits in next_logits(base, texts, groups or range(len(texts)), batch_size):
        found[rows] = logits.log_softmax(-1)[:, ids].cpu()
    return found


def choice_token(base: Base, choice: str, text: str) -> int:
    """The one token of a choice that comes right behind a text.

    A tokenizer may give a word that it sees alone a space, which never follows an open bracket, or
    have a token for a bracket and a letter: so behind a bracket a choice is found in a place where
    the bracket is a token. Raises ValueError if it is more than one token.
    """
    place = "x (" if text.endswith("(") else ""
    before, ids = base.token_ids(place), base.token_ids(place + choice)
    if len(ids) != len(before) + 1:
        raise ValueError(f"choice {choice!r} is {len(ids) - len(before)} tokens; expected one")
    return ids[-1]


def perplexity(base: Base, texts: Sequence[str], answers: Sequence[str], batch_size: int) -> float:
    """exp of the mean loss per token over all answers, each read behind its rendered prompt."""
    tokens = sum(len(base.token_ids(base.neutral(answer))) for answer in answers)
    return math.exp(-float(log_likelihoods(base, texts, answers, batch_size).sum()) / tokens)


@torch.no_grad()
def log_likelihoods(
    base: Base, texts: Sequence[str], answers: Sequence[str], batch_size: int
) -> torch.Tensor:
    """log P(answer | text) of each answer behind its rendered prompt, (rows,), in nats."""
    heads = [base.token_ids(text) for text in texts]
    tails = [base.token_ids(base.neutral(answer)) for answer in answers]
    both = [head + tail for head, tail in zip(heads, tails, strict=True)]
    found = torch.zeros(len(both))
    for tokens, mask, rows in _batches(base, both, batch_size):
        hidden = _hidden(base, tokens, mask).last_hidden_state
        for place, row in enumerate(rows):
            inside = slice(len(heads[row]) - 1, len(both[row]) - 1)
            logits = base.head(hidden[place, inside]).float()
            wanted = torch.tensor(tails[row], dtype=torch.long, device=logits.device)
            found[row] = -torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").cpu()
    return found


def relevance(
    base: Base, prompts: Sequence[str], answers: Sequence[str], batch_size: int
) -> np.ndarray:
    """How much an answer is about its prompt: log P(answer | prompt) - log P(answer | "Hello!").

    In nats, (rows,): pointwise mutual information, with a greeting for no prompt at all. What would
    stand as well behind anything, "I can't help you with that", has next to none.
    """
    own = [base.render(chat(prompt)) for prompt in prompts]
    none = [base.render(chat(_GREETING))] * len(answers)
    with packed(base, head=False):
        behind = [log_likelihoods(base, texts, answers, batch_size) for texts in (own, none)]
    found: np.ndarray = (behind[0] - behind[1]).numpy()
    return found


@torch.no_grad()
def mean_states(
    base: Base,
    prompts: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
    lengths: Sequence[int] = (10_000,),
) -> torch.Tensor:
    """Mean hidden state over the answer's tokens at some layers, (rows, layers * hidden).

    `prompts` are rendered chats that end where the answer begins; an empty answer has zeros.
    `lengths` are how many of the answer's first tokens a mean takes in; several stand side by side.
    """
    return _means(
        base,
        prompts,
        answers,
        layers,
        batch_size,
        lambda place, ends: [(place >= 0) & (place < ends.clamp(max=most)) for most in lengths],
    )


@torch.no_grad()
def reply_states(
    base: Base, prompts: Sequence[str], answers: Sequence[str], layer: int, batch_size: int
) -> torch.Tensor:
    """Three hidden states of each answer at one layer side by side, (rows, 3 * hidden).

    The mean over its tokens, the last of them, and the last token before it, by which the prompt
    has been read. `prompts` are rendered chats; of an empty answer the first two are zeros.
    """
    return _means(
        base,
        prompts,
        answers,
        (layer,),
        batch_size,
        lambda place, ends: [
            (place >= 0) & (place < ends),
            (place >= 0) & (place == ends - 1),
            place == -1,
        ],
    )


def _means(
    base: Base,
    prompts: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
    insides: Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]],
) -> torch.Tensor:
    """Mean hidden states over some tokens of each prompt and answer, side by side, (rows, …).

    `insides` says which: from each token's place in the answer, (rows, tokens), and the answers'
    lengths in tokens, (rows, 1).
    """
    heads = [base.token_ids(prompt) for prompt in prompts]
    tails = [base.token_ids(base.neutral(answer)) for answer in answers]
    both = [head + tail for head, tail in zip(heads, tails, strict=True)]
    kinds = len(insides(torch.empty(0, 0), torch.empty(0, 1)))
    found = torch.empty(len(both), kinds * len(layers) * base.body.config.hidden_size)
    for tokens, mask, rows in _batches(base, both, batch_size):
        starts = torch.tensor([[len(heads[row])] for row in rows], device=base.device)
        ends = torch.tensor([[len(tails[row])] for row in rows], device=base.device)
        places = torch.arange(tokens.shape[1], device=base.device) - starts
        states = _hidden(base, tokens, mask, output_hidden_states=True).hidden_states
        means = [_mean(states[layer], one) for one in insides(places, ends) for layer in layers]
        found[rows] = torch.cat(means, dim=1).cpu()
    return found


def _mean(states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean over the places inside, (rows, hidden); zeros where there are none."""
    weights = inside.float()[:, :, None]
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def _hidden(base: Base, tokens: torch.Tensor, mask: torch.Tensor, **options: bool):  # type: ignore[no-untyped-def]
    return base.body(tokens, attention_mask=mask, use_cache=False, **options)


def _batches(
    base: Base, ids: Sequence[list[int]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """(tokens, mask, row numbers), rows of like length together, padded on the right."""
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for start in range(0, len(ids), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(ids[row]) for row in rows)
        pad = base.tokenizer.pad_token_id
        tokens = torch.tensor([ids[row] + [pad] * (width - len(ids[row])) for row in rows])
        mask = torch.tensor([[1] * len(ids[row]) + [0] * (width - len(ids[row])) for row in rows])
        yield tokens.to(base.device), mask.to(base.device), rows
