"""Functions of torch that are not public, and which a release may change: pyproject.toml has a ceiling on its version.

Each can go when the public function in its comment is as fast (`dlip bench modules`, `dlip bench precision`).
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether `onednn_linear` and `onednn_layout` exist."""
ONEDNN_LINEAR = "mkldnn::_linear_pointwise"
"""`onednn_linear` in a profile."""

foreach_add_, foreach_mul_ = torch._foreach_add_, torch._foreach_mul_
foreach_lerp, foreach_lerp_ = torch._foreach_lerp, torch._foreach_lerp_
"""Arithmetic on lists of tensors in one call, as in torch's own optimizers."""


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN instead of MKL, followed by GELU on request; without gradients."""
    how = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *how)


def onednn_layout(weight: Tensor, rows: int) -> Tensor:
    """Weights as oneDNN reads them in products with about so many rows; torch.compile with freezing does the same."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def onednn_has_bf16() -> bool:
    """Whether oneDNN multiplies bf16 matrices with instructions of this CPU.

    It accepts bf16 on every CPU with AVX-512, and emulates it on those without AVX512_BF16.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    return torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.cpu._is_avx512_bf16_supported()


def int8_times_int8(a: Tensor, b: Tensor) -> Tensor:
    """The product of int8 matrices, int32; `torch.matmul` has none on a CPU."""
    return torch._int_mm(a, b)


if ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *rest, **more) -> int:
        return 2 * x.numel() * weight[0]
