"""Numbers read off the model: log-probabilities of choices and hidden states of answers.

The vocabulary head is computed only where its output is used.
"""

from collections.abc import Iterator, Sequence

import torch

from .models import Base


@torch.no_grad()
def end_states(base: Base, texts: Sequence[str], batch_size: int) -> torch.Tensor:
    """Last hidden state of each text's last token, (texts, hidden), float32 on the CPU."""
    found = []
    for tokens, mask, _ in _batches(base, [base.token_ids(text) for text in texts], batch_size):
        hidden = _hidden(base, tokens, mask).last_hidden_state
        last = mask.sum(1) - 1
        found.append(hidden[torch.arange(len(last)), last].float().cpu())
    return torch.cat(found)


@torch.no_grad()
def choice_logprobs(
    base: Base, texts: Sequence[str], choices: Sequence[str], batch_size: int
) -> torch.Tensor:
    """log P(choice | text) of the next token, shape (texts, choices); each choice is one token.

    Raises ValueError if a choice is more than one token.
    """
    ids = [_one_token(base, choice) for choice in choices]
    states = end_states(base, texts, batch_size).to(base.device, base.head.weight.dtype)
    return base.head(states).float().log_softmax(-1)[:, ids].cpu()


@torch.no_grad()
def mean_states(
    base: Base,
    prompts: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
) -> torch.Tensor:
    """Mean hidden state over the answer's tokens at some layers, (rows, layers * hidden).

    `prompts` are rendered chats that end where the answer begins; an empty answer has zeros.
    """
    heads = [base.token_ids(prompt) for prompt in prompts]
    tails = [base.token_ids(base.neutral(answer)) for answer in answers]
    both = [head + tail for head, tail in zip(heads, tails, strict=True)]
    found = []
    for tokens, mask, rows in _batches(base, both, batch_size):
        starts = torch.tensor([len(heads[row]) for row in rows], device=base.device)
        places = torch.arange(tokens.shape[1], device=base.device)
        inside = (mask.bool() & (places >= starts[:, None])).float()[:, :, None]
        states = _hidden(base, tokens, mask, output_hidden_states=True).hidden_states
        means = [(states[i].float() * inside).sum(1) / inside.sum(1).clamp(min=1) for i in layers]
        found.append(torch.cat(means, dim=1).cpu())
    return torch.cat(found)


def _hidden(base: Base, tokens: torch.Tensor, mask: torch.Tensor, **options: bool):  # type: ignore[no-untyped-def]
    return base.body(tokens, attention_mask=mask, use_cache=False, **options)


def _one_token(base: Base, choice: str) -> int:
    ids = base.token_ids(choice)
    if len(ids) != 1:
        raise ValueError(f"choice {choice!r} is {len(ids)} tokens; expected one")
    return ids[0]


def _batches(
    base: Base, ids: Sequence[list[int]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """(tokens, mask, row numbers) in the given order, padded on the right."""
    for start in range(0, len(ids), batch_size):
        rows = list(range(start, min(start + batch_size, len(ids))))
        width = max(len(ids[row]) for row in rows)
        pad = base.tokenizer.pad_token_id
        tokens = torch.tensor([ids[row] + [pad] * (width - len(ids[row])) for row in rows])
        mask = torch.tensor([[1] * len(ids[row]) + [0] * (width - len(ids[row])) for row in rows])
        yield tokens.to(base.device), mask.to(base.device), rows
