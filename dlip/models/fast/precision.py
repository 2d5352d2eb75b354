"""Low precision for inference, in bf16. Models in 8 bits run in other libraries (`dlip.export`)."""

import warnings

import torch

from dlip.common.errors import UserError
from dlip.common.torch_private import onednn_has_bf16
from dlip.models.fast.linear import Linear, refuse_packed
from dlip.models.med import Med
from dlip.models.protocol import Model

PRECISIONS = ("fp32", "bf16")


def native_bf16() -> bool:
    """Whether the accelerator, or else the CPU, has instructions for bf16; without them torch emulates it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return onednn_has_bf16() or torch.accelerator.is_available()


def best() -> str:
    """The precision in which training is fastest on this machine."""
    return "bf16" if native_bf16() else "fp32"


def warn_if_emulated(precision: str, advice: str) -> None:
    """Warn, with advice, if "bf16" is chosen on a machine that emulates it."""
    if precision == "bf16" and not native_bf16():
        warnings.warn(f"this machine has no instructions for bf16, so it is slow; {advice}", stacklevel=3)


def convert_precision(med: Med, precision: str) -> Med:
    """Convert the model in place to "bf16" and return it; "fp32" changes nothing.

    Raises UserError for another precision and for a packed model.
    """
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return med
    refuse_packed(med)
    cast(med, torch.bfloat16)
    return med


def cast(model: Model, dtype: torch.dtype) -> None:
    """Convert the weights in place, to fp32 or bf16. Raises UserError for another type."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"a model cannot be in {dtype}; choose torch.float32 or torch.bfloat16")
    for med in model.members:
        mean, std = med.image_mean, med.image_std
        med.to(dtype)
        med.image_mean, med.image_std = mean, std  # pixels are normalized in fp32


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
    return "bf16" if med.temp.dtype == torch.bfloat16 else "fp32"


def require_fp32_blip(med: Med, purpose: str) -> Med:
    """Return the model if it is a MED in fp32. Raises UserError if not."""
    if len(med.members) > 1:
        raise UserError(f"{purpose} does not support a model made of several; name one of them")
    if med.stock:
        raise UserError(f"{purpose} does not support a CLIP or SigLIP; use the stock classes of transformers")
    if (lowered := precision(med)) != "fp32":
        raise UserError(f"the model is in {lowered}, which {purpose} does not support; use the fp32 original")
    return med
