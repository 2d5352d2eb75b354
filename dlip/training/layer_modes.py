"""How layers are run in training: as they are, computed again in backward, or compiled.

Computed again (gradient checkpointing), a layer keeps its input alone for backward: Chen et al., Training deep nets
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

PARTS = {ImageLayer: "forward", TextAttention: "forward", TextLayer: "feed_forward"}
"""What is computed again or compiled: of text layers each half, as the tokens' keys and values come from outside."""


def can_compile() -> bool:
    """Whether there is a GPU, or the C++ compiler that torch compiles a CPU's layers with."""
    return torch.accelerator.is_available() or bool(shutil.which((os.environ.get("CXX") or "g++").split()[0]))


def set_layer_modes(model: nn.Module, recomputed: bool = False, compiled: bool = False) -> None:
    """From now on; as they are if nothing is asked. Losses and gradients stay the same, dropout's choices too.

    Compiled ones may differ by rounding. Raises UserError where nothing can be compiled.
    """
    if compiled and not can_compile():
        raise UserError("--compile needs a C++ compiler on a CPU; install g++ or name one in CXX, or leave it out")
    for module in model.modules():
        name = PARTS.get(type(module))
        if name:
            vars(module).pop(name, None)
            part = getattr(module, name)
            part = torch.compile(part) if compiled else part
            part = partial(checkpoint, part, use_reentrant=False) if recomputed else part
            if compiled or recomputed:
                setattr(module, name, part)
