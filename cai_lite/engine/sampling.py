"""Batched generation that gives every row its own seed.

A row's text depends on its prompt and its seed alone, up to rounding in the last bits: rows draw
their own random numbers, finished rows leave the batch, and what several rows begin with is read
once, be it a prefix, a system prompt, or a question with several openings of its answer.
"""

import os.path
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .cache import RowCache, States, attending_apart, causal_bias, keeps_apart
from .models import Base, at_rest
from .packed import packed

ROWS = 64  # rows in one batch: more gain little on two cores and cost memory
_TOKENS = 512  # tokens read at once, padding included, so that activations stay in the CPU's cache
_VOCABULARY = 8192  # rows of the head that are made float32 at once


@dataclass(frozen=True)
class Sampling:
    """How to continue a text: at most so many tokens, at a temperature (0: greedy).

    With `one_line` a row ends at its first line break, which is not part of the text.
    """

    max_new_tokens: int
    temperature: float = 0.0
    one_line: bool = False


@dataclass(frozen=True)
class _Prompt:
    """A row to continue: its tokens up to the last of its text, that one and its opening's."""

    place: int  # in the caller's order
    head: list[int]
    tail: list[int]
    seed: int


@torch.inference_mode()
def generate(
    base: Base,
    texts: Sequence[str],
    sampling: Sampling,
    seeds: Sequence[int],
    prefix: str = "",
    *,
    openings: Sequence[str] = (),
    batch_size: int = ROWS,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Continue each of `prefix + text + opening`; returns what was written, without an end token.

    `seeds` has one number a row, and so has `openings`, unless it is empty. Prefix and openings
    are tokenised by themselves, so what stands before each should end in a line break. Any number
    of rows may come: they are sorted by length and done `batch_size` at a time. `on_tokens` is
    told after each step how many tokens it wrote.
    """
    if not texts:
        return []
    prompts = _prompts(base, texts, prefix, openings, seeds)
    written: list[list[int]] = [[] for _ in texts]
    with packed(base), at_rest(base):
        shared = _Shared(base, prompts, sampling.max_new_tokens)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            tokens = _continue(_Batch(base, shared, batch, sampling), sampling, on_tokens)
            for prompt, row in zip(batch, tokens, strict=True):
                written[prompt.place] = row
    tails = {prompt.place: prompt.tail for prompt in prompts}
    found = _behind(base, [tails[place] for place in range(len(texts))], written)
    return [text.split("\n")[0] if sampling.one_line else text for text in found]


def _behind(base: Base, tails: list[list[int]], written: list[list[int]]) -> list[str]:
    """The texts of tokens that follow others; alone they lose a first space to SentencePiece."""
    whole = [tail + row for tail, row in zip(tails, written, strict=True)]
    before, after = (
        base.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (tails, whole)
    )
    return [text[len(start) :] for start, text in zip(before, after, strict=True)]


def next_logits(
    base: Base, texts: Sequence[str], groups: Sequence[Hashable], batch_size: int = ROWS
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(places, logits of the token after each of these texts, (rows, vocabulary)), by batches."""
    for places, states in last_states(base, texts, groups, batch_size):
        yield places, _exact_logits(base, states)


@torch.inference_mode()
def last_states(
    base: Base, texts: Sequence[str], groups: Sequence[Hashable], batch_size: int = ROWS
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(places, last hidden states of these texts' last tokens, (rows, hidden)), by batches.

    `groups` has one name a text. Texts of a group should begin alike, as many questions about one
    conversation do, or many answers to one prompt: what they share is read once, and so is what
    all texts share.
    """
    if not texts:
        return
    prompts = _questions([base.prompt_ids(text) for text in texts], groups)
    with packed(base, head=False), at_rest(base):
        shared = _Shared(base, prompts, 0)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            states = _Batch(base, shared, batch, Sampling(0)).read()
            yield [prompt.place for prompt in batch], states


@torch.inference_mode()
def _exact_logits(base: Base, states: torch.Tensor) -> torch.Tensor:
    """Logits in float32, (rows, vocabulary), whatever the weights are in.

    A label is a small difference of two logits, and bfloat16 rounds one of 20 to the next eighth.
    """
    if base.head.weight.dtype == torch.float32:
        return base.head(states)
    parts = base.head.weight.split(_VOCABULARY)
    logits = torch.cat([states.float() @ part.float().mT for part in parts], dim=1)
    return logits if base.head.bias is None else logits + base.head.bias.float()


def _questions(ids: Sequence[list[int]], groups: Sequence[Hashable]) -> list[_Prompt]:
    """Rows as what their group begins with and the rest, one token of it at least."""
    members: dict[Hashable, list[list[int]]] = {}
    for row, group in zip(ids, groups, strict=True):
        members.setdefault(group, []).append(row)
    begins = {
        group: os.path.commonprefix([row[:-1] for row in rows]) for group, rows in members.items()
    }
    prompts = [
        _Prompt(place, list(begins[group]), row[len(begins[group]) :], 0)
        for place, (row, group) in enumerate(zip(ids, groups, strict=True))
    ]
    return sorted(prompts, key=lambda prompt: (len(prompt.head), prompt.head, len(prompt.tail)))


def _prompts(
    base: Base, texts: Sequence[str], prefix: str, openings: Sequence[str], seeds: Sequence[int]
) -> list[_Prompt]:
    """The rows as tokens, shortest first, those with the same text beside each other."""
    before = base.prompt_ids(prefix) if prefix else []
    tokens = base.token_ids if prefix else base.prompt_ids
    ids = {text: before + tokens(text) for text in texts}
    starts = [
        base.token_ids(opening) if opening else [] for opening in openings or [""] * len(texts)
    ]
    prompts = [
        _Prompt(place, ids[text][:-1], ids[text][-1:] + start, seed)
        for place, (text, start, seed) in enumerate(zip(texts, starts, seeds, strict=True))
    ]
    return sorted(prompts, key=lambda prompt: (len(prompt.head), prompt.head, len(prompt.tail)))


def _continue(
    batch: "_Batch", sampling: Sampling, on_tokens: Callable[[int], None]
) -> list[list[int]]:
    """The decoding loop: new tokens of each row of the batch, in the batch's order."""
    states = batch.read()
    for step in range(sampling.max_new_tokens):
        logits = batch.base.head(states).float()
        tokens = _choose(logits, batch.draws[batch.places, step], sampling.temperature)
        on_tokens(int((~batch.done).sum()))
        batch.take(tokens, step)
        if batch.done.all() or step + 1 == sampling.max_new_tokens:
            break
        states = batch.advance()
    return [[token for token in row if token >= 0] for row in batch.written.tolist()]


class _Shared:
    """What all rows begin with, read once; `apart` if the rows' caches do not hold a copy."""

    def __init__(self, base: Base, prompts: Sequence[_Prompt], new_tokens: int) -> None:
        ids = os.path.commonprefix([prompt.head for prompt in prompts])  # lists do as strings do
        longest = max(len(prompt.head) + len(prompt.tail) for prompt in prompts) + new_tokens
        self.length = len(ids)
        self.apart = bool(ids) and keeps_apart(base.body.config, base.device, longest)
        self.states: States = []
        if ids:
            cache = RowCache(base.body.config.num_hidden_layers, 1, len(ids))
            tokens = torch.tensor([ids], device=base.device)
            base.body(tokens, past_key_values=cache, use_cache=True)
            self.states = cache.states()

    @property
    def copied(self) -> int:
        """How many columns of the cache of each row it takes."""
        return 0 if self.apart else self.length


class _Batch:
    """The rows in the batch: `places` says where in `written` each belongs, `done` which ended.

    `ids`, (rows, width), are the tokens to read next; `seen`, (rows, columns), is True where the
    cache holds a token and False where it holds padding. Leaving the batch copies the cache, so
    ended rows leave together, a quarter of it at a time.
    """

    def __init__(
        self, base: Base, shared: _Shared, prompts: Sequence[_Prompt], sampling: Sampling
    ) -> None:
        self.base, self.shared = base, shared
        self.heads = [tuple(prompt.head[shared.length :]) for prompt in prompts]
        self.tails = [prompt.tail for prompt in prompts]
        self.draws = _draws([prompt.seed for prompt in prompts], sampling.max_new_tokens)
        self.stops = _stop_tokens(base, sampling.one_line)
        self.ends = torch.tensor(base.end_tokens)
        self.places = torch.arange(len(prompts))
        self.ids = self.seen = torch.empty(0)
        self.done = torch.zeros(len(prompts), dtype=torch.bool)
        self.written = torch.full((len(prompts), sampling.max_new_tokens), -1)

    def read(self) -> torch.Tensor:
        """Read the prompts; the states that the first new token is read off, (rows, hidden)."""
        self._read_heads()
        self.ids, seen = self._padded(self.tails)
        self.seen = torch.cat([self.seen, seen], dim=1)
        return self._last()

    def _read_heads(self) -> None:
        """Read each distinct head once, and lay it down in the cache of every row that has it."""
        self.seen = self._after_shared(self._padded(self.heads)[1])
        room = max(map(len, self.tails)) + self.written.shape[1]
        self.cache = self._cache(len(self.heads), self.seen.shape[1] + room)
        at_once = _TOKENS if self.base.device.type == "cpu" else 8 * _TOKENS
        for heads in _groups(sorted(set(self.heads), key=len), at_once):
            rows = [row for row, head in enumerate(self.heads) if head in heads]
            sources = [heads.index(self.heads[row]) for row in rows]
            self.cache.lay(self._states(heads), rows, sources, end=self.seen.shape[1])

    def _states(self, heads: list[tuple[int, ...]]) -> States:
        """Keys and values of some heads, (heads, ...), read after what is shared."""
        ids, seen = self._padded(heads)
        cache = self._cache(len(heads), self.shared.copied + ids.shape[1])
        self._hidden(cache, ids, self._after_shared(seen))
        return cache.states(self.shared.copied)

    def _after_shared(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.cat([seen.new_ones(len(seen), self.shared.copied), seen], dim=1)

    def _cache(self, rows: int, room: int) -> RowCache:
        cache = RowCache(self.base.body.config.num_hidden_layers, rows, room)
        if self.shared.copied:
            cache.lay(self.shared.states, range(rows), [0] * rows, end=self.shared.copied)
        return cache

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, padded on the left, and which of them are no padding, both (rows, longest)."""
        width = max(map(len, rows))
        pad = self.base.tokenizer.pad_token_id
        ids = [[pad] * (width - len(row)) + list(row) for row in rows]
        seen = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
        device = self.base.device
        return torch.tensor(ids, device=device), torch.tensor(seen, dtype=torch.bool, device=device)

    def advance(self) -> torch.Tensor:
        """Read the last token of each row; the states the next is read off, (rows, hidden)."""
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.places), 1)], dim=1)
        return self._last()

    def _last(self) -> torch.Tensor:
        return self._hidden(self.cache, self.ids, self.seen)[:, -1]

    def _hidden(self, cache: RowCache, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Last hidden states of new tokens, (rows, width, size), which the cache then holds."""
        before = self.shared.length - self.shared.copied
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :] + before
        kept = dict(position_ids=positions, past_key_values=cache, use_cache=True)
        if not self.shared.apart:
            return self.base.body(ids, attention_mask=seen.long(), **kept).last_hidden_state
        bias = causal_bias(seen, ids.shape[1])
        with attending_apart(self.base.body.config):
            out = self.base.body(ids, attention_mask=bias, shared=self.shared.states, **kept)
        return out.last_hidden_state

    def take(self, tokens: torch.Tensor, step: int) -> None:
        """Write one token to each row that has not ended; ended rows leave now and then."""
        found = tokens.cpu()
        kept = ~self.done & ~torch.isin(found, self.ends)
        self.written[self.places[kept], step] = found[kept]
        self.ids, self.done = tokens[:, None], self.done | self.stops[found]
        if 0.25 <= self.done.float().mean() < 1:
            self._leave(torch.nonzero(~self.done).flatten())

    def _leave(self, keep: torch.Tensor) -> None:
        self.places, self.done = self.places[keep], self.done[keep]
        keep = keep.to(self.base.device)
        self.ids, self.seen = self.ids[keep], self.seen[keep]
        self.cache.batch_select_indices(keep)


def _groups(heads: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Heads that are not empty, given shortest first, in groups of so many tokens or less."""
    group: list[tuple[int, ...]] = []
    for head in filter(None, heads):
        if group and (len(group) + 1) * len(head) > tokens:
            yield group
            group = []
        group.append(head)
    if group:
        yield group


def _draws(seeds: Sequence[int], steps: int) -> torch.Tensor:
    """Uniform numbers, (rows, steps), each row from its own seed, on the CPU for every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(steps, generator=one) for one in generators])


def _choose(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """One token a row, (rows,): the likeliest, or by inverting the distribution at `draws`."""
    if temperature == 0:
        return logits.argmax(-1)
    tokens = _inverted((logits / temperature).softmax(-1), draws.to(logits.device))
    return tokens.clamp(max=logits.shape[-1] - 1)


def _inverted(chances: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Where the running sum of `chances`, (rows, tokens), passes `draws`, (rows,).

    By blocks of 256 and then inside one: summing up the whole vocabulary takes a sixth of a step.
    In float64, or the sums differ between batches by as much as a rare token has.
    """
    blocks = torch.nn.functional.pad(chances, (0, -chances.shape[1] % 256)).unflatten(1, (-1, 256))
    sums = blocks.sum(-1, dtype=torch.float64)
    ends = sums.cumsum(-1)
    wanted = draws[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, wanted, right=True).clamp(max=ends.shape[1] - 1)
    rest = wanted - (ends - sums).gather(1, block)
    inside = blocks[torch.arange(len(blocks)), block[:, 0]].cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(inside, rest, right=True).clamp(max=255)
    return (256 * block + place)[:, 0]


def _stop_tokens(base: Base, one_line: bool) -> torch.Tensor:
    """Which tokens end a row, (vocabulary,): end tokens, and those with a line break."""
    size = base.head.weight.shape[0]
    stops = torch.zeros(size, dtype=torch.bool)
    stops[base.end_tokens] = True
    if one_line:
        breaks = base.line_breaks[:size]
        stops[: len(breaks)] |= breaks
    return stops
