"""Depthwise convolutions that are trained on a CPU in bfloat16."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Fp32Depthwise(TorchFunctionMode):
    """Run strided depthwise convolutions, and those with kernels larger than 3, in fp32 under autocast.

    oneDNN is many times slower with their gradients in bfloat16.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (_conv2d if function is torch.conv2d else function)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1
) -> Tensor:
    autocast = torch.is_autocast_enabled("cpu")
    slow = autocast and 1 < groups == input.shape[1] and (weight.shape[-1] > 3 or stride not in (1, (1, 1)))
    with torch.autocast("cpu", enabled=autocast and not slow):
        return torch.conv2d(input.float() if slow else input, weight, bias, stride, padding, dilation, groups)
