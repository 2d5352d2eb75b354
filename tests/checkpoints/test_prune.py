"""Pruning: unused channels go first, heads keep their channels, and refusals."""

import pytest
import torch

from dlip.checkpoints.prune import axes, prune
from dlip.checkpoints.tensors import weights
from dlip.common.errors import UserError
from dlip.models.config import scenes_size
from dlip.models.med import Med
from tests.helpers import shaken

WIDE = dict(image_width=32, text_width=32, image_mlp=64, text_mlp=64, image_heads=4, text_heads=4)
NARROW = dict(image_width=16, text_width=24, image_mlp=40, text_mlp=48, image_heads=4, text_heads=4)


def made(seed: int = 0, **changes) -> Med:
    torch.manual_seed(seed)
    med = Med(scenes_size(32, 2, 2, **{**WIDE, **changes}))
    shaken(med, 0.3)
    return med


def test_every_dimension_has_a_label():
    for changes in ({}, dict(text_width=24), dict(tie_decoder=False)):
        for name, tensor in weights(made(**changes)).items():
            assert len(axes(name, tensor.ndim)) == tensor.ndim, name


def pruned_to(narrow: Med, wide: Med) -> dict[str, torch.Tensor]:
    """All weights of `wide`, pruned."""
    return prune(weights(wide), wide.config, narrow.config, weights(wide))


def test_unused_channels_are_pruned_first():
    """A narrow model spread over some channels of a wide one is recovered exactly."""
    narrow = made(seed=1, image_width=16, text_width=16, image_mlp=40, text_mlp=48)
    wide = made(seed=2)
    torch.manual_seed(3)
    channels, sizes = {}, {}
    for name, tensor in weights(wide).items():
        for axis, label in enumerate(axes(name, tensor.ndim)):
            if label:
                sizes[label] = (weights(narrow)[name].shape[axis], tensor.shape[axis])
    for label, (kept, size) in sizes.items():
        kept, size = (n // 3 if ".self_attn" in label and n % 3 == 0 and n > 32 else n for n in (kept, size))
        if " heads " in label:  # as many of each head
            kept, size = kept // 4, size // 4
            some = [torch.randperm(size)[:kept].sort().values + head * size for head in range(4)]
            channels[label] = torch.cat(some)
        else:
            channels[label] = torch.randperm(size)[:kept].sort().values
    for name, tensor in weights(wide).items():
        tensor.data.zero_()
        small, index = weights(narrow)[name], []
        for axis, label in enumerate(axes(name, tensor.ndim)):
            kept = channels[label] if label else torch.arange(tensor.shape[axis])
            if ".qkv." in name and axis == 0:
                kept = torch.cat([kept + part * tensor.shape[0] // 3 for part in range(3)])
            index.append(kept)
        tensor.data[torch.meshgrid(*index, indexing="ij") if index else ...] = small.data
    for name, tensor in pruned_to(narrow, wide).items():
        assert torch.equal(tensor, weights(narrow)[name]), name


def test_whole_heads_are_pruned_if_their_number_differs():
    wide, narrow = made(), made(image_width=16, image_heads=2, text_width=16, text_heads=2)
    name = "vision_model.encoder.layers.0.self_attn.projection.weight"
    wide.vision_model.encoder.layers[0].self_attn.projection.weight.data[:, :8] = 0  # head 0
    wide.vision_model.encoder.layers[0].self_attn.qkv.weight.data.view(3, 4, 8, 32)[:, 0] = 0
    pruned = pruned_to(narrow, wide)
    assert pruned[name].shape == (16, 16) and (pruned[name] != 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [(dict(text_width=64), "no wider"), (dict(image_width=24, image_heads=2), "give the model 4 heads")],
)
def test_wider_models_and_other_heads_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        pruned_to(made(**changes), made())
