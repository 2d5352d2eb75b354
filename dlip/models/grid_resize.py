"""Images resized to a model's size, patch tokens and attention maps to another patch grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalized(images: Tensor, size: int, mean: Tensor, std: Tensor, mode: str = "bicubic") -> Tensor:
    """Images uint8 [B, 3, H, W] of any size, resized and normalized by mean and std [1, 3, 1, 1], fp32 [B, 3, S, S]."""
    pixels = images.float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode=mode, antialias=True).clamp(0, 1)
    return (pixels - mean) / std


def to_grid(tokens: Tensor, grid: int) -> Tensor:
    """[CLS] and patch tokens [N, 1+g*g, D] -> [N, 1+grid*grid, D]; patches are interpolated bilinearly."""
    old = round((tokens.shape[1] - 1) ** 0.5)
    if old == grid:
        return tokens
    patches = tokens[:, 1:].transpose(1, 2).unflatten(-1, (old, old))
    patches = F.interpolate(patches, (grid, grid), mode="bilinear", antialias=grid < old, align_corners=False)
    return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], 1)


def map_to_grid(probs: Tensor, grid: int) -> Tensor:
    """Attention over [CLS] and patches [N, H, Q, 1+g*g] -> [N, H, Q, 1+grid*grid]; each new patch gets the
    probability of the area under it, so that the sum stays 1. In fp32 under autocast too, as a softmax is."""
    old = round((probs.shape[-1] - 1) ** 0.5)
    if old == grid:
        return probs
    new_edges = torch.arange(grid + 1, device=probs.device)[:, None] * old  # in 1 / (old * grid) of a side
    old_edges = torch.arange(old + 1, device=probs.device) * grid
    overlap = torch.minimum(new_edges[1:], old_edges[1:]) - torch.maximum(new_edges[:-1], old_edges[:-1])
    share = (overlap.clamp(min=0) / grid).to(probs.dtype)  # [grid, g]: part of each old row inside each new row
    with torch.autocast(probs.device.type, enabled=False):
        patches = share @ probs[..., 1:].unflatten(-1, (old, old)) @ share.T  # [N, H, Q, grid, grid]
    return torch.cat([probs[..., :1], patches.flatten(-2)], -1)
