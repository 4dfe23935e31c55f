"""Batched generation that gives every row its own seed.

A row's text depends on its prompt and its seed alone, up to rounding in the last bits: rows draw
their own random numbers, finished rows leave the batch, and a prefix that all prompts share is
read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .models import Base


@dataclass(frozen=True)
class Sampling:
    """How to continue a text: at most so many tokens, at a temperature (0: greedy).

    With `one_line` a row ends at its first line break, which is not part of the text.
    """

    max_new_tokens: int
    temperature: float = 0.0
    one_line: bool = False


@torch.inference_mode()
def generate(
    base: Base,
    texts: Sequence[str],
    sampling: Sampling,
    seeds: Sequence[int],
    prefix: str = "",
) -> list[str]:
    """Continue each of `prefix + text`; returns the continuations without the end token.

    `seeds` has one number a row. The prefix is tokenised by itself, so it should end in a line
    break.
    """
    rows = _Rows(base, texts, prefix)
    draws = _draws(seeds, sampling.max_new_tokens)
    stops = _stop_tokens(base, sampling.one_line)
    logits = rows.read()
    for step in range(sampling.max_new_tokens):
        tokens = _choose(logits, draws[rows.places, step], sampling.temperature)
        rows.take(tokens, stops[tokens.cpu()])
        if rows.done.all() or step + 1 == sampling.max_new_tokens:
            break
        logits = rows.advance()
    texts = base.tokenizer.batch_decode(rows.written, skip_special_tokens=True)
    return [text.split("\n")[0] if sampling.one_line else text for text in texts]


class _Rows:
    """The rows in the batch: `places` says where in `written` each belongs, `done` which ended.

    Leaving the batch copies the cache, so ended rows leave together, a quarter of it at a time.
    """

    def __init__(self, base: Base, texts: Sequence[str], prefix: str) -> None:
        self.base = base
        self.written: list[list[int]] = [[] for _ in texts]
        self.places = torch.arange(len(texts))
        self.done = torch.zeros(len(texts), dtype=torch.bool)
        ids = [base.token_ids(text) for text in texts]
        width = max(map(len, ids))
        pad = base.tokenizer.pad_token_id
        self.ids = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        self.cache, read = self._prefix_cache(prefix, len(texts))
        self.mask = torch.cat([torch.ones(len(texts), read, dtype=torch.long), mask], dim=1)
        self.ids, self.mask = self.ids.to(base.device), self.mask.to(base.device)

    def _prefix_cache(self, prefix: str, rows: int) -> tuple[DynamicCache, int]:
        cache = DynamicCache(config=self.base.body.config)
        ids = self.base.token_ids(prefix) if prefix else []
        if ids:
            tokens = torch.tensor([ids], device=self.base.device)
            self.base.body(tokens, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(rows)
        return cache, len(ids)

    def read(self) -> torch.Tensor:
        """Read the prompts; logits of the first new token, shape (rows, vocabulary)."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -self.ids.shape[1] :]
        return self._logits(self.ids, positions)

    def advance(self) -> torch.Tensor:
        """Read the last token of each row; logits of the next, (rows, vocabulary)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.places), 1)], dim=1)
        return self._logits(self.ids, self.mask.sum(1, keepdim=True) - 1)

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = self.base.body(
            ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self.base.head(hidden).float()

    def take(self, tokens: torch.Tensor, ends: torch.Tensor) -> None:
        """Write one token to each row that has not ended; ended rows leave now and then."""
        for i in torch.nonzero(~self.done).flatten().tolist():
            if not ends[i] or tokens[i] != self.base.tokenizer.eos_token_id:
                self.written[self.places[i]].append(int(tokens[i]))
        self.ids, self.done = tokens[:, None], self.done | ends
        if 0.25 <= self.done.float().mean() < 1:
            self._leave(torch.nonzero(~self.done).flatten())

    def _leave(self, keep: torch.Tensor) -> None:
        self.places, self.done = self.places[keep], self.done[keep]
        keep = keep.to(self.base.device)
        self.ids, self.mask = self.ids[keep], self.mask[keep]
        self.cache.batch_select_indices(keep)


def _draws(seeds: Sequence[int], steps: int) -> torch.Tensor:
    """Uniform numbers, (rows, steps), each row from its own seed, on the CPU for every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(steps, generator=one) for one in generators])


def _choose(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """One token a row, (rows,): the likeliest, or by inverting the distribution at `draws`."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    drawn = draws.to(logits.device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, drawn, right=True).squeeze(1)
    return tokens.clamp(max=logits.shape[-1] - 1)


def _stop_tokens(base: Base, one_line: bool) -> torch.Tensor:
    """Which tokens end a row, (vocabulary,): the end token, and those with a line break."""
    size = base.head.weight.shape[0]
    stops = torch.zeros(size, dtype=torch.bool)
    stops[base.tokenizer.eos_token_id] = True
    if one_line:
        breaks = base.line_breaks[:size]
        stops[: len(breaks)] |= breaks
    return stops
