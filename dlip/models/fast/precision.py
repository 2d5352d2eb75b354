"""Models in low precision, for inference: all of it in bf16, or also the text layers' weights in 8 bits.

A decoding step reads every weight of the text layers and of the LM head for a few rows, and takes as long as that
reading: 8 bits halve it once more. The image encoder and the keys and values of its states have rows enough that
products take the time; there 8 bits would only be made bf16 again.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common.errors import UserError
from dlip.common.machine import has_bf16_instructions
from dlip.models.fast.linear import Linear, refuse_packed
from dlip.models.med import Med

PRECISIONS = ("fp32", "bf16", "int8")
FEW = 64
"""Rows up to which products read the weights in 8 bits."""
MULTIPLE = 16
"""Of which the width of their input must be one."""


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits, a scale a row (symmetric, of the row's largest), over inputs in bf16."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        whole = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.weight, self.scale, self.bias = (
            nn.Parameter(values, requires_grad=False) for values in (whole, scale, layer.bias.detach().bfloat16())
        )

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if 0 < rows <= FEW and x.device.type == "cpu":
            out = torch._weight_int8pack_mm(x.reshape(rows, -1).contiguous(), self.weight, self.scale) + self.bias
            out = out.view(*x.shape[:-1], -1)
        else:
            out = F.linear(x, self.weight.to(x.dtype) * self.scale[:, None], self.bias)
        return F.gelu(out) if gelu else out


def native_bf16() -> bool:
    """Whether products in bf16 are fast here: on a processor without instructions for them torch has only slow ones."""
    return has_bf16_instructions() or torch.accelerator.is_available()


def warn_if_emulated(precision: str, advice: str) -> None:
    """Warns, with advice, where "bf16" or "int8" (whose other half is bf16) is chosen and slow."""
    if precision in ("bf16", "int8") and not native_bf16():
        warnings.warn(f"this processor has no instructions for bf16, which takes far longer; {advice}", stacklevel=3)


def lower(med: Med, precision: str) -> Med:
    """The model itself, changed for good to "bf16" or "int8"; "fp32" leaves it. Raises UserError for another precision
    and for a packed model."""
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return med
    refuse_packed(med)
    if precision == "int8":
        layers = {}  # a layer that several parts share stays one
        for part in (med.text_encoder, med.text_decoder):
            for name, module in part.named_modules():
                for child, layer in module.named_children():
                    if type(layer) is Linear and not _of_states(name, child) and layer.in_features % MULTIPLE == 0:
                        layers.setdefault(id(layer), Int8Linear(layer))
                        setattr(module, child, layers[id(layer)])
    mean, std = med.image_mean, med.image_std
    med.bfloat16()
    med.image_mean, med.image_std = mean, std  # pixels are normalised in fp32
    return med


def pack(med: Med) -> Med:
    """The model itself, changed for good to be served on a CPU, in whatever precision: its larger products' weights lie
    as those read them, once and for good. It can no longer be trained, saved or moved."""
    for module in med.modules():
        if type(module) is Linear:
            module.pack()
    return med


def _of_states(module: str, child: str) -> bool:
    return module.endswith("crossattention.self") and child in ("key", "value")


def precision(med: Med) -> str:
    """Of `PRECISIONS`, that of a model."""
    if any(isinstance(module, Int8Linear) for module in med.modules()):
        return "int8"
    return "bf16" if med.temp.dtype == torch.bfloat16 else "fp32"


def refuse_lowered(med: Med, purpose: str) -> Med:
    """The model, where it is in fp32. Raises UserError where it is not."""
    if (found := precision(med)) != "fp32":
        raise UserError(f"the model is in {found}, which serves no {purpose}; take the model that it was made from")
    return med
