"""Low precision for inference: the whole model in bf16, or in addition the text layers' weights in int8.

A decoding step reads all weights of the text layers and the LM head for a few rows, so that it takes as long as reading
them: int8 halves that again. The image encoder and the keys and values of its states process many rows and are bound by
arithmetic; int8 would only be converted back to bf16 there.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common.errors import UserError
from dlip.common.torch_private import bf16_times_int8, onednn_has_bf16
from dlip.models.composite import Composite
from dlip.models.fast.linear import Linear, refuse_packed
from dlip.models.med import Med

PRECISIONS = ("fp32", "bf16", "int8")
MAX_INT8_ROWS = 64
"""Rows up to which the int8 product is faster than converting the weights to bf16."""
INT8_WIDTH_MULTIPLE = 16
"""The int8 product needs an input width that is a multiple of this."""
STATE_READERS = ("crossattention.self.key", "crossattention.self.value")
"""Layers that read the states of an entire image or question, and stay in bf16."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a symmetric scale per output (row maximum / 127), and bf16 inputs."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        rounded = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.weight, self.scale, self.bias = (
            nn.Parameter(values, requires_grad=False) for values in (rounded, scale, layer.bias.detach().bfloat16())
        )

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if 0 < rows <= MAX_INT8_ROWS and x.device.type == "cpu":
            out = bf16_times_int8(x.reshape(rows, -1).contiguous(), self.weight, self.scale) + self.bias
            out = out.view(*x.shape[:-1], -1)
        else:
            out = F.linear(x, self.weight.to(x.dtype) * self.scale[:, None], self.bias)
        return F.gelu(out) if gelu else out


def native_bf16() -> bool:
    """Whether bf16 is fast on this machine; torch emulates it on processors without instructions for it."""
    return onednn_has_bf16() or torch.accelerator.is_available()


def warn_if_emulated(precision: str, advice: str) -> None:
    """Warn, with advice, if "bf16" or "int8" (which computes in bf16) is chosen on a machine that emulates bf16."""
    if precision in ("bf16", "int8") and not native_bf16():
        warnings.warn(f"this processor has no instructions for bf16, so it is slow; {advice}", stacklevel=3)


def convert_precision(med: Med, precision: str) -> Med:
    """Convert the model in place to "bf16" or "int8" and return it; "fp32" changes nothing.

    Raises UserError for another precision and for a packed model.
    """
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return med
    refuse_packed(med)
    if precision == "int8":
        if not isinstance(med, Med):
            raise UserError("int8 is for BLIP's layers; convert a CLIP or SigLIP to bf16")
        layers = {}  # tied layers stay tied
        for part in (med.text_encoder, med.text_decoder):
            for name, layer in list(part.named_modules()):
                fits = type(layer) is Linear and layer.in_features % INT8_WIDTH_MULTIPLE == 0
                if fits and not name.endswith(STATE_READERS):
                    layers.setdefault(id(layer), Int8Linear(layer))
                    part.set_submodule(name, layers[id(layer)])
    mean, std = med.image_mean, med.image_std
    med.bfloat16()
    med.image_mean, med.image_std = mean, std  # pixels are normalized in fp32
    return med


def pack(med: Med) -> Med:
    """Pack the larger linear layers in place, in any precision, for faster inference on a CPU; return the model.

    A packed model can no longer be trained, saved or moved.
    """
    for module in med.modules():
        if type(module) is Linear:
            module.pack()
    return med


def precision(med: Med) -> str:
    """The precision of a model, of `PRECISIONS`."""
    if any(isinstance(module, Int8Linear) for module in med.modules()):
        return "int8"
    return "bf16" if med.temp.dtype == torch.bfloat16 else "fp32"


def require_fp32_blip(med: Med, purpose: str) -> Med:
    """Return the model if it is a MED in fp32. Raises UserError if not."""
    if isinstance(med, Composite):
        raise UserError(f"{purpose} does not support a model made of several; {purpose} each by itself")
    if not isinstance(med, Med):
        raise UserError(f"{purpose} does not support a CLIP or SigLIP; use the stock classes of transformers")
    if (lowered := precision(med)) != "fp32":
        raise UserError(f"the model is in {lowered}, which {purpose} does not support; use the fp32 original")
    return med
