"""Depthwise convolutions in fp32 under autocast, and nothing else."""

import pytest
import torch
from torch.nn import Conv2d

from dlip.models.backbone import Backbone
from dlip.models.fast.depthwise import Fp32Depthwise


@pytest.mark.parametrize(
    ("conv", "fp32"),
    [
        (Conv2d(8, 8, 3, padding=1, groups=8), False),
        (Conv2d(8, 8, 3, stride=2, padding=1, groups=8), True),
        (Conv2d(8, 8, 5, padding=2, groups=8, bias=False), True),
        (Conv2d(8, 16, 5, stride=2), False),
        (Conv2d(1, 1, 5), False),
    ],
)
def test_which_convolutions_are_in_fp32(conv, fp32):
    x = torch.randn(2, conv.in_channels, 9, 9)
    with torch.autocast("cpu", torch.bfloat16), Fp32Depthwise():
        y = conv(x)
    assert y.dtype == (torch.float32 if fp32 else torch.bfloat16)
    if fp32:
        assert torch.equal(y, conv(x))


def test_a_backbone_uses_it_only_where_it_is_trained(monkeypatch):
    entered, enter = [], Fp32Depthwise.__enter__
    monkeypatch.setattr(Fp32Depthwise, "__enter__", lambda mode: entered.append(mode) or enter(mode))
    backbone, pixels = Backbone("tf_efficientnet_lite0"), torch.randn(1, 3, 64, 64)
    backbone(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            backbone(pixels)
        assert not entered
        backbone(pixels).sum().backward()
        assert len(entered) == 1 and all(p.grad is not None for p in backbone.parameters())
        backbone.requires_grad_(False)(pixels)
        assert len(entered) == 1
