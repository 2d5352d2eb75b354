"""A model's weights in narrower widths: of every width the most important channels are kept.

A channel's importance is the sum of squares of all weights that read or write it, as in magnitude pruning of whole
structures (Li et al., arXiv 1608.08710). Where a width is not cut, the weights stay as they are.
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


def cut(
    tensors: dict[str, Tensor], source: ModelConfig, target: ModelConfig, wanted: Collection[str] | None = None
) -> dict[str, Tensor]:
    """`tensors`, named as this project names weights and sized as `source`, in the widths of `target`.

    wanted: names of those that are returned, where it is not all; the others still say which channels matter. Raises
    UserError where a target of these is wider, or where its heads differ in both number and width.
    """
    named = {name: axes(name, tensor.ndim) for name, tensor in tensors.items()}
    importance: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for axis, label in enumerate(named[name]):
            if label:
                squares = tensor.float().square().movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1)
                squares = squares.view(3, -1).sum(0) if _is_qkv(name, axis) else squares
                importance[label] = importance.get(label, 0) + squares
    names = [name for name in tensors if wanted is None or name in wanted]
    labels = {label for name in names for label in named[name]} - {None}
    kept = {label: keep(label, importance[label], source, target) for label in labels}
    out = {}
    for name in names:
        tensor = tensors[name]
        for axis, label in enumerate(named[name]):
            if label:
                places = kept[label]
                if _is_qkv(name, axis):
                    places = torch.cat([places + part * (tensor.shape[axis] // 3) for part in range(3)])
                tensor = tensor.index_select(axis, places)
        out[name] = tensor
    return out


def axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """What each axis of a weight runs over: "image" or "text" channels, an attention's or a feed-forward's, or None."""
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
    elif name == "temp" or name.endswith("predictions.bias"):
        return (None,) * ndim
    elif name.endswith("patch_embedding.weight"):
        return own, None, None, None
    elif "embedding" in name and ndim > 1:
        return *(None,) * (ndim - 1), own
    return (writes, reads) if ndim == 2 else (writes,)


def keep(label: str, importance: Tensor, source: ModelConfig, target: ModelConfig) -> Tensor:
    """Places of the channels that stay, in their order."""
    side, kind = label.split()[0], (label.split() + ["width"])[1]
    field = f"{side}_{'mlp' if kind == 'mlp' else 'width'}"
    size, wanted = getattr(source, field), getattr(target, field)
    if wanted > size:
        raise UserError(f"{field} of the source is {size}, the model's {wanted}; start a model that is no wider")
    if kind != "heads" or size == wanted:
        return importance.topk(wanted).indices.sort().values
    ours, theirs = getattr(target, f"{side}_heads"), getattr(source, f"{side}_heads")
    grouped = importance.view(theirs, -1)  # [heads, channels of one]
    places = torch.arange(size, device=importance.device).view(theirs, -1)
    if ours == theirs:
        best = grouped.topk(wanted // ours, 1).indices.sort(1).values
        return places.gather(1, best).flatten()
    if size // theirs == wanted // ours:
        return places[grouped.sum(1).topk(ours).indices.sort().values].flatten()
    raise UserError(
        f"heads of {side} differ in number ({theirs} and {ours}) and in width; give the model {theirs} heads, "
        f"or heads of {size // theirs} channels"
    )


def _is_qkv(name: str, axis: int) -> bool:
    return axis == 0 and ".qkv." in name
