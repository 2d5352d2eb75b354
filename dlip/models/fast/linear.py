"""Linear layers whose products are oneDNN's where that is faster.

Torch gives products of fp32 to MKL, which leaves half of some processors' arithmetic unused and is several times slower
than their memory for the few rows of a decoding step. oneDNN has neither fault, but a call of it costs more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from dlip.common.errors import UserError
from dlip.common.machine import has_bf16_instructions

WEIGHTS, PRODUCTS = 90_000, 1_500_000
"""From so many weights, or multiply-accumulates, oneDNN's product is faster, its call included."""
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ROWS = 24
"""For which weights are packed; any other number but 1 has the same layout."""


class Linear(nn.Linear):
    """`nn.Linear`, optionally followed by GELU, with fast products on a CPU where nothing is learnt."""

    packed: Tensor | None = None
    """The weights as oneDNN's products read them, after `pack`."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        if self.packed is not None and x.requires_grad and torch.is_grad_enabled():
            refuse_packed(self)
        if self.packed is not None or self._suits_onednn(x):
            weight = self.weight if self.packed is None else self.packed
            return torch.ops.mkldnn._linear_pointwise(
                x, weight, self.bias, "gelu" if gelu else "none", [], "none" if gelu else ""
            )
        x = F.linear(x, self.weight, self.bias)
        return F.gelu(x) if gelu else x

    def pack(self) -> None:
        """Lays the weights out as products read them, where that pays; `weight` from then on has a shape, no values."""
        fits = self.weight.dtype == torch.float32 or has_bf16_instructions()
        if ONEDNN and fits and self.packed is None and self.in_features * self.out_features >= WEIGHTS:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS)
            self.weight = nn.Parameter(torch.empty_like(self.weight, device="meta"), requires_grad=False)

    def _suits_onednn(self, x: Tensor) -> bool:
        """Without gradients, mixed precision or a graph that is being recorded: oneDNN's call knows none of them."""
        return (
            ONEDNN
            and not torch.compiler.is_compiling()  # sizes may be unknown then
            and (self.in_features * self.out_features >= WEIGHTS or x.numel() * self.out_features >= PRODUCTS)
            and not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
        )


def refuse_packed(module: nn.Module) -> None:
    """Raises UserError where a layer of it is packed."""
    if any(isinstance(layer, Linear) and layer.packed is not None for layer in module.modules()):
        raise UserError("a packed model no longer has its weights and only serves; take the one it was made from")


if ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *rest, **more) -> int:
        return 2 * x.numel() * weight[0]
