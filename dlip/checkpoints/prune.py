"""Structured pruning of a model's weights to narrower widths: the most important channels are kept.

A channel's importance is the sum of squares of all weights that read or write it (Li et al., Pruning Filters for
Efficient ConvNets, arXiv 1608.08710). Weights of a width that stays the same are not changed.
"""

import re
from collections.abc import Collection

import torch
from torch import Tensor

from dlip.common.errors import UserError
from dlip.models.config import ModelConfig

IMAGE, TEXT = "image", "text"
_ATTENTION = re.compile(r"(.*\.(?:self_attn|attention|crossattention))\.(.*)\.(?:weight|bias)")
_MLP_IN, _MLP_OUT = (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense.")


def prune(
    tensors: dict[str, Tensor], source: ModelConfig, target: ModelConfig, only: Collection[str]
) -> dict[str, Tensor]:
    """Weights of a model of sizes `source`, pruned to the widths of `target`.

    only: names of the weights to return; the others still count for importance. Raises UserError if
    the target is wider, or if its heads differ in both number and width.
    """
    labels = {name: axes(name, tensor.ndim) for name, tensor in tensors.items()}
    importance: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for axis, label in enumerate(labels[name]):
            if label:
                squares = tensor.float().square().movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1)
                squares = squares.view(3, -1).sum(0) if _is_qkv(name, axis) else squares
                importance[label] = importance.get(label, 0) + squares
    names = [name for name in tensors if name in only]
    pruned = {label for name in names for label in labels[name]} - {None}
    kept = {label: kept_channels(label, importance[label], source, target) for label in pruned}
    out = {}
    for name in names:
        tensor = tensors[name]
        for axis, label in enumerate(labels[name]):
            if label:
                channels = kept[label]
                if _is_qkv(name, axis):
                    channels = torch.cat([channels + part * (tensor.shape[axis] // 3) for part in range(3)])
                tensor = tensor.index_select(axis, channels)
        out[name] = tensor
    return out


def axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """A label for the channels of each axis of a weight: "image", "text", an attention's heads, a feed-forward's; None
    if the axis is never pruned. Weights with the same label keep the same channels."""
    if ".backbone." in name:
        return (None,) * ndim
    own = IMAGE if name.startswith("vision_") else TEXT
    writes, reads = own, own
    if match := _ATTENTION.fullmatch(name):
        heads, part = f"{own} heads {match[1]}", match[2]
        if part in ("qkv", "self.query", "self.key", "self.value"):
            context = match[1].endswith("crossattention") and part != "self.query"
            writes, reads = heads, IMAGE if context else own
        elif not part.endswith("LayerNorm"):
            reads = heads
    elif any(part in name for part in _MLP_IN):
        writes = f"{own} mlp {name.split('.mlp.')[0].split('.intermediate.')[0]}"
    elif any(part in name for part in _MLP_OUT):
        reads = f"{own} mlp {name.split('.mlp.')[0].split('.output.')[0]}"
    elif name.startswith(("vision_proj", "text_proj", "itm_head")):
        writes = None
    elif name.startswith("question_bridge"):
        writes = IMAGE
    elif name.endswith("predictions.decoder.weight"):
        return None, own
    elif name == "temp" or name.endswith("predictions.bias"):
        return (None,) * ndim
    elif name.endswith("patch_embedding.weight"):
        return own, *(None,) * (ndim - 1)
    elif "embedding" in name and ndim > 1:
        return *(None,) * (ndim - 1), own
    return (writes, reads) if ndim == 2 else (writes,)


def kept_channels(label: str, importance: Tensor, source: ModelConfig, target: ModelConfig) -> Tensor:
    """Ascending indices of the channels that are kept."""
    side, kind = label.split()[0], (label.split() + ["width"])[1]
    field = f"{side}_{'mlp' if kind == 'mlp' else 'width'}"
    size, new_size = getattr(source, field), getattr(target, field)
    if new_size > size:
        raise UserError(f"{field} of the source is {size}, the model's {new_size}; choose a model that is no wider")
    heads, new_heads = getattr(source, f"{side}_heads"), getattr(target, f"{side}_heads")
    if kind != "heads" or (size, heads) == (new_size, new_heads):
        return importance.topk(new_size).indices.sort().values
    by_head = importance.view(heads, -1)  # [heads, channels per head]
    channels = torch.arange(size, device=importance.device).view(heads, -1)
    if new_heads == heads:
        best = by_head.topk(new_size // new_heads, 1).indices.sort(1).values
        return channels.gather(1, best).flatten()
    if size // heads == new_size // new_heads:
        return channels[by_head.sum(1).topk(new_heads).indices.sort().values].flatten()
    raise UserError(
        f"{side} heads differ in number ({heads} and {new_heads}) and in width; give the model {heads} heads, "
        f"or heads of {size // heads} channels"
    )


def _is_qkv(name: str, axis: int) -> bool:
    return axis == 0 and ".qkv." in name
