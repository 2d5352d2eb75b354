"""Image backbones: any feature extractor of timm under the image encoder. Its last grid becomes the patches.

Source: the hybrid of ViT (Dosovitskiy et al., arXiv 2010.11929, section 3.1).
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from dlip.common.errors import UserError
from dlip.models.fast.depthwise import Fp32Depthwise


class Backbone(nn.Module):
    """A feature extractor of timm, always in eval mode: its batch norms keep their statistics, even if it is trained.

    name: as in `timm.list_models()`. Raises UserError if there is no such model.
    """

    def __init__(self, name: str):
        super().__init__()
        import timm  # takes a second

        if not timm.is_model(name):
            raise UserError(f"timm has no model {name!r}; model.image_backbone is one of timm.list_models()")
        self.model = timm.create_model(name, num_classes=0, global_pool="").eval()
        self.model.to(memory_format=torch.channels_last)  # convolutions are 1.3 to 1.7 times as fast on a CPU
        self._cut: int | None = None

    def train_last(self, stages: int) -> None:
        """Freeze all but the last `stages` stages of an EfficientNet. Raises UserError for others, or for too many."""
        from timm.models.efficientnet import EfficientNet

        if not isinstance(self.model, EfficientNet):
            raise UserError("only of an EfficientNet some stages can be trained; drop --backbone-stages")
        if stages >= (most := len(self.model.blocks)):
            raise UserError(f"the backbone has {most} stages; train fewer, or drop --backbone-stages to train all")
        self._cut = most - stages
        self.frozen_part.requires_grad_(False)

    @property
    def frozen_part(self) -> nn.Module:
        """What `frozen_features` runs."""
        if self._cut is None:
            return self.model
        return nn.Sequential(self.model.conv_stem, self.model.bn1, *self.model.blocks[: self._cut])

    @property
    def channels(self) -> int:
        return self.model.num_features

    @property
    def stride(self) -> int:
        """Pixels per patch."""
        return self.model.feature_info[-1]["reduction"]

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, S, S], or `frozen_features` of them -> features of its last grid [B, P, C]."""
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())
        with Fp32Depthwise() if trained and torch.is_autocast_enabled("cpu") else nullcontext():
            features = pixels if pixels.ndim == 3 else self.frozen_features(pixels)
            if self._cut is None:
                return features
            grid = features.transpose(1, 2).unflatten(2, (math.isqrt(features.shape[1]), -1))
            grid = self.model.blocks[self._cut :](grid.contiguous(memory_format=torch.channels_last))
            return _patches(self.model.bn2(self.model.conv_head(grid)))

    def frozen_features(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, S, S] -> features [B, P', C'] of the last frozen stage, for a cache; of the last
        grid unless `train_last` was called."""
        features = self.model.forward_features(pixels) if self._cut is None else self.frozen_part(pixels)
        if features.ndim == 3:  # tokens, some of which are no patches
            return features[:, self.model.num_prefix_tokens :]
        last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if last else _patches(features)


def _patches(grid: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]."""
    return grid.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class BackboneSize:
    """What a backbone costs, and how it reads images."""

    params: int
    """Stored numbers, the statistics of batch norms included."""
    macs: int
    """Multiply-accumulates for one image."""
    channels: int
    stride: int
    patches: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@lru_cache
def backbone_size(name: str, image_size: int) -> BackboneSize:
    """Computed without weights. image_size: in px. Raises UserError if timm has no such model, or none of that size."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        counter = FlopCounterMode(display=False)
        try:
            backbone = Backbone(name)
            with counter, torch.inference_mode():
                patches = backbone(torch.empty(1, 3, image_size, image_size)).shape[1]
        except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
            raise UserError(
                f"the backbone {name} makes no patches of images of {image_size} px ({error}); change image_size, or "
                "choose another backbone"
            ) from None
    stored = [*backbone.parameters(), *(b for b in backbone.buffers() if b.is_floating_point())]
    data = backbone.model.pretrained_cfg
    return BackboneSize(
        sum(t.numel() for t in stored), counter.get_total_flops() // 2, backbone.channels, backbone.stride, patches,
        tuple(data["mean"]), tuple(data["std"]),
    )  # fmt: skip
