"""The weights unpacked for a while, instead of again at every step.

A 4-bit layer dequantises its weight whenever it is asked, and an adapter adds two small products
of its own. While many tokens are generated it pays to do both once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer

from .models import Base

_ROOM = 2 * 2**30  # bytes of unpacked weights a machine has room for beside the model
_ROWS = 64  # a usual batch, for which the layout in memory is chosen


@contextmanager
def packed(base: Base, *, head: bool = True) -> Iterator[None]:
    """Let every linear layer multiply by its whole weight, adapter included, in the block.

    The outputs are the layers' own up to rounding. Weights must not change inside. Only on a CPU
    and for models of up to half a billion parameters; elsewhere nothing happens. Without `head`
    the vocabulary head is left alone.
    """
    layers = _linear_layers(base, head) if base.device.type == "cpu" else []
    if not has_room([_linear(layer) for layer in layers]):
        layers = []
    try:
        for layer in layers:
            layer.forward = _product(_weight(layer), _linear(layer).bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def has_room(layers: Sequence[Any]) -> bool:
    """Whether the machine has room for the unpacked weights of these linear layers."""
    return 4 * sum(layer.in_features * layer.out_features for layer in layers) <= _ROOM


def _linear_layers(base: Base, head: bool) -> list[torch.nn.Module]:
    """The layers to unpack; one whose `forward` was replaced already, as training does with what
    an adapter wraps, has its weights unpacked, and twice would be a second copy of the model."""
    found = _linear_layers_of(base.body) + [base.head] * head
    return [layer for layer in found if "forward" not in vars(layer) | vars(_linear(layer))]


def _linear_layers_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    if isinstance(module, torch.nn.Linear | LoraLayer):
        return [module]
    return [layer for child in module.children() for layer in _linear_layers_of(child)]


def _linear(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def _weight(layer: Any) -> torch.Tensor:
    """What the layer multiplies by, adapters that play included, (out, in)."""
    weight = _linear(layer).weight
    state = getattr(weight, "quant_state", None)
    whole = weight.detach() if state is None else dequantize_4bit(weight.data, state)
    if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                whole = whole + layer.get_delta_weight(name)  # type: ignore[attr-defined]
    return whole


def _product(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear layer's forward; oneDNN lays the weight out in blocks, once and not each time."""
    if not _lays_out(weight.dtype):
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")


def _lays_out(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of this type on this CPU: bfloat16 needs AVX-512 or newer."""
    if dtype == torch.float32:
        return torch.backends.mkldnn.is_available()
    if dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
