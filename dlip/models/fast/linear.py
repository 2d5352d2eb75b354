"""Linear layers that use oneDNN's matrix product on CPUs where it is faster.

For fp32 torch calls MKL, which leaves half of some processors' arithmetic unused and stays far below memory bandwidth
for the few rows of a decoding step. oneDNN is faster there, but each call costs more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common.errors import UserError
from dlip.common.torch_private import ONEDNN, onednn_has_bf16, onednn_layout, onednn_linear

MIN_WEIGHTS, MIN_PRODUCTS = 90_000, 1_500_000
"""Weights, or multiply-accumulates, from which oneDNN is faster, the cost of its call included."""
PACKED_ROWS = 24
"""Batch size that weights are packed for; the layout is the same for any but 1."""


class Linear(nn.Linear):
    """`nn.Linear`, optionally followed by GELU, with oneDNN's product for inference on a CPU."""

    packed: Tensor | None = None
    """The weights in oneDNN's layout, after `pack`."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        if self.packed is not None and x.requires_grad and torch.is_grad_enabled():
            refuse_packed(self)
        if self.packed is not None or self._suits_onednn(x):
            weight = self.weight if self.packed is None else self.packed
            return onednn_linear(x, weight, self.bias, gelu)
        x = F.linear(x, self.weight, self.bias)
        return F.gelu(x) if gelu else x

    def pack(self) -> None:
        """Reorder the weights into oneDNN's layout if that is faster; `weight` then has a shape but no values."""
        fits = self.weight.dtype == torch.float32 or onednn_has_bf16()
        if ONEDNN and fits and self.packed is None and self.in_features * self.out_features >= MIN_WEIGHTS:
            self.packed = onednn_layout(self.weight.detach(), PACKED_ROWS)
            self.weight = nn.Parameter(torch.empty_like(self.weight, device="meta"), requires_grad=False)

    def _suits_onednn(self, x: Tensor) -> bool:
        """oneDNN's call supports no gradients, no mixed precision and no tracing."""
        return (
            ONEDNN
            and not torch.compiler.is_compiling()  # sizes may be symbolic
            and (self.in_features * self.out_features >= MIN_WEIGHTS or x.numel() * self.out_features >= MIN_PRODUCTS)
            and not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
        )


def refuse_packed(module: nn.Module) -> None:
    """Raise UserError if a layer is packed."""
    if any(isinstance(layer, Linear) and layer.packed is not None for layer in module.modules()):
        raise UserError("a packed model has no weights left and only does inference; load the model again")
