"""Tag loss: what an image shows, cell by cell."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from dlip.losses.term import At, Setup, Term, register
from dlip.models.features import Want


@register("tags")
class Tags(Term):
    """Tags: binary cross-entropy of which of K tags each cell of an image has, mean over targets [B, C, K].

    Patches are averaged over cells where the grids differ, and a head maps them to K logits. Beyond the paper, in place
    of the ImageNet weights from which its image encoders are initialized.
    """

    needs = "tags"
    trains = frozenset({"image"})
    averages_over = "images"

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.head = nn.Linear(setup.student.config.image_width, setup.tags)

    def wants(self, side: str) -> Want:
        return Want(layers={("image", "states"): (-1,)} if side == "student" else {})

    def forward(self, at: At) -> Tensor:
        patches, targets = at.student.states("image")[:, 1:], at.batch.tags
        cells = targets.shape[1]
        if patches.shape[1] != cells:
            side = math.isqrt(patches.shape[1])
            grid = patches.transpose(1, 2).unflatten(2, (side, side))  # [B, D, P rows, P columns]
            patches = F.adaptive_avg_pool2d(grid, math.isqrt(cells)).flatten(2).transpose(1, 2)
        return F.binary_cross_entropy_with_logits(self.head(patches).float(), targets)
