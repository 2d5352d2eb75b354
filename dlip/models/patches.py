"""How an image becomes the tokens that the image encoder reads."""

import torch
from torch import Tensor, nn

from dlip.models.backbone import Backbone
from dlip.models.config import ModelConfig
from dlip.models.fast.linear import Linear


class PatchEmbeddings(nn.Module):
    """Patches of pixels, or of a backbone's features, with a class token and positions."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, c.image_width), std=0.02))
        self.backbone = Backbone(c.image_backbone) if c.image_backbone else None
        if self.backbone:
            self.patch_embedding = Linear(self.backbone.channels, c.image_width)
        else:
            self.patch_embedding = nn.Conv2d(3, c.image_width, c.patch_size, c.patch_size)
        positions = torch.empty(1, c.grid**2 + 1, c.image_width)
        self.position_embedding = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, S, S], or in their place the backbone's `frozen_features` [B, P', C']."""
        if self.backbone:
            patches = self.patch_embedding(self.backbone(pixels))  # [B, P, D]
        else:
            patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(pixels.shape[0], -1, -1), patches], 1)
        return tokens + self.position_embedding  # [B, P+1, D]
