"""Keys and values of the rows of a batch, and those of a beginning that all rows share.

What all rows begin with is read once. On a CPU its keys and values are kept once as well: each
row's attention over them and over its own are two parts, joined by their log-sum-exp, which is
the softmax over both. Elsewhere each row gets a copy, and the model's own attention is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

_NAME = "cai_lite_shared"
States = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values by layer


class RowCache(Cache):
    """Room for so many tokens of so many rows, written in place; a step copies nothing."""

    layers: Any  # of _RoomyLayer

    def __init__(self, layers: int, rows: int, room: int) -> None:
        super().__init__(layers=[_RoomyLayer(rows, room) for _ in range(layers)])

    @property
    def filled(self) -> int:
        """Columns in use, padding included."""
        return self.layers[0].filled

    def states(self, start: int = 0) -> States:
        """Keys and values from a column on, each (rows, heads, columns, size)."""
        return [
            (layer.keys[:, :, start : layer.filled], layer.values[:, :, start : layer.filled])
            for layer in self.layers
        ]

    def lay(self, states: States, rows: Sequence[int], sources: Sequence[int], end: int) -> None:
        """Copy row `sources[i]` of some states to row `rows[i]`, their last column before `end`."""
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.lay(keys, values, rows, sources, end)


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, room, size), of which `filled` are in use."""

    keys: Any
    values: Any

    def __init__(self, rows: int, room: int) -> None:
        super().__init__()
        self.rows, self.room, self.filled = rows, room, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self._space(key_states), self._space(value_states)
        self.is_initialized = True

    def _space(self, like: torch.Tensor) -> torch.Tensor:
        # zeros, since padding is multiplied too: by a weight of 0, which does not undo a NaN
        return like.new_zeros(self.rows, like.shape[1], self.room, like.shape[3])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        self.keys[:, :, start : self.filled] = key_states
        self.values[:, :, start : self.filled] = value_states
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def lay(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: Sequence[int],
        sources: Sequence[int],
        end: int,
    ) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        start, self.filled = end - keys.shape[2], max(end, self.filled)
        self.keys[list(rows), :, start:end] = keys[sources]
        self.values[list(rows), :, start:end] = values[sources]

    def get_seq_length(self) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0


def keeps_apart(config: Any, device: torch.device, length: int) -> bool:
    """Whether a shared beginning of rows of that length can stay out of the rows' own cache."""
    window = getattr(config, "sliding_window", None) or length
    return device.type == "cpu" and config._attn_implementation == "sdpa" and length <= window


@contextmanager
def attending_apart(config: Any) -> Iterator[None]:
    """Let the model attend by `attend_apart`, which its forward must be given `shared` for."""
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def causal_bias(seen: torch.Tensor, width: int) -> torch.Tensor:
    """What to add to attention scores, (rows, 1, width, columns): 0, or very little for unseen.

    `seen`, (rows, columns), is False at padding; the last `width` columns are the new tokens.
    """
    columns = torch.arange(seen.shape[1], device=seen.device)
    reach = columns[-width:, None] >= columns
    low = torch.finfo(torch.float32).min  # not -inf, which would make padding's own rows NaN
    return torch.zeros((), device=seen.device).masked_fill(~(seen[:, None, None] & reach), low)


def attend_apart(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    shared: Sequence[tuple[torch.Tensor, torch.Tensor]],
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over the shared beginning and a row's own tokens, (rows, width, heads, size).

    `query` is (rows, heads, width, size); `key` and `value` hold the row's own tokens and
    `attention_mask`, (rows, 1, width, columns), is of those alone. All rows read the shared keys
    as if they were one row with many queries.
    """
    rows, heads, width, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(rows, groups, -1, size)  # heads that share keys are queries beside
    bias = attention_mask.repeat(1, 1, heads // groups, 1)
    own, own_sum = _attention(grouped, key, value, bias, scaling)
    together = grouped.transpose(0, 1).reshape(1, groups, -1, size)
    keys, values = shared[int(module.layer_idx)]  # type: ignore[arg-type]
    common, common_sum = _attention(together, keys, values, None, scaling)
    common = common.reshape(groups, rows, -1, size).transpose(0, 1)
    common_sum = common_sum.reshape(groups, rows, -1).transpose(0, 1)
    weight = (common_sum - own_sum).sigmoid()[..., None].to(own.dtype)  # the sums are float32
    joined = torch.lerp(own, common, weight).reshape(rows, heads, width, size)
    return joined.transpose(1, 2), None


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention, log-sum-exp of the scores); torch's own function keeps the second to itself."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias, scale=scaling
    )


AttentionInterface.register(_NAME, attend_apart)
