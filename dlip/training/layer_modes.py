"""How a model's layers run in training: plainly, recomputed in backward, or compiled.

Recomputed layers (gradient checkpointing) keep only their input for backward. Source: Chen et al., Training deep nets
with sublinear memory cost (arXiv 1604.06174).
"""

import os
import shutil
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dlip.common.errors import UserError
from dlip.models.med import ImageLayer, TextAttention, TextLayer

WRAPPED_METHODS = {ImageLayer: "forward", TextAttention: "forward", TextLayer: "feed_forward"}
"""Module -> method that is recomputed or compiled. Text layers are wrapped by halves, as cached keys and values pass
between these."""
RECOMPILE_LIMIT = 64
"""Graphs that torch.compile keeps of a method before it runs this uncompiled. Student and teacher together have more of
the text attention than 8, the default: with and without a mask, cached keys, gradients and maps."""


def can_compile() -> bool:
    """Whether there is a GPU, or the C++ compiler with which torch compiles for a CPU."""
    return torch.accelerator.is_available() or bool(shutil.which((os.environ.get("CXX") or "g++").split()[0]))


def set_layer_modes(model: nn.Module, recomputed: bool = False, compiled: bool = False) -> None:
    """Wrap the layers of `model`; without a mode, unwrap them. Losses and gradients stay the same.

    Compiled layers may differ by rounding. Raises UserError where there is no compiler.
    """
    if compiled and not can_compile():
        raise UserError("--compile needs a C++ compiler on a CPU; install g++, name one in CXX, or drop the option")
    if compiled:
        torch.compiler.config.recompile_limit = RECOMPILE_LIMIT
    for module in model.modules():
        name = WRAPPED_METHODS.get(type(module))
        if name:
            vars(module).pop(name, None)
            method = getattr(module, name)
            method = torch.compile(method) if compiled else method
            method = partial(checkpoint, method, use_reentrant=False) if recomputed else method
            if compiled or recomputed:
                setattr(module, name, method)
