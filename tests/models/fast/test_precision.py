"""Low precision: nearly equal results, and what models in bf16 and packed ones are refused for."""

import copy
from unittest.mock import Mock

import pytest
import torch

import dlip
from dlip.checkpoints.tensors import load_weights, weights
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.ablation import ablate
from dlip.experiments.grids import FULL, QUICK
from dlip.export.transformers import to_dlip
from dlip.models.fast.linear import Linear
from dlip.models.fast.precision import convert_precision, precision
from dlip.training.config import TrainConfig
from dlip.training.loop import train
from dlip.training.terms import HR, VLP
from dlip.vlm import VLM


@pytest.fixture(scope="module")
def student() -> VLM:
    return dlip.load("scenes/student")


@pytest.fixture(scope="module")
def lowered(tmp_path_factory) -> VLM:
    folders, skipped = to_dlip("scenes/student", tmp_path_factory.mktemp("export"), "bf16")
    assert not skipped and list(folders) == ["bf16"]
    return VLM.load(folders["bf16"])


def test_results_are_nearly_equal(student, lowered):
    scenes = Scenes("val", size=40)
    before, after = (dlip.evaluate(vlm, scenes, progress=False) for vlm in (student, lowered))
    for task, figure in (("retrieval", "tr@1"), ("retrieval", "ir@1"), ("captioning", "cider"), ("vqa", "accuracy")):
        assert after[task][figure] == pytest.approx(before[task][figure], rel=0.05)
    images = [scenes[i].image for i in range(8)]
    texts = [scenes[i].captions[0] for i in range(8)]
    torch.testing.assert_close(lowered.similarity(images, texts), student.similarity(images, texts), atol=0.03, rtol=0)
    assert lowered.med.image_mean.dtype == torch.float32 and lowered.med.vision_proj.weight.dtype == torch.bfloat16
    assert (precision(student.med), precision(lowered.med)) == ("fp32", "bf16")


def test_export_in_fp16_halves_the_weights_and_is_read_as_fp32(tmp_path):
    assert main(["export", "scenes/student", "--fp16", "--shard-mb", "1", "--out", str(tmp_path)]) == 0
    folder, original = tmp_path / "fp16", dlip.load("scenes/student")
    stored = [path.stat().st_size for path in folder.glob("model-*-of-*.safetensors")]
    assert max(stored) < 1.1e6 and sum(stored) < 0.55 * sum(p.nbytes for p in original.med.parameters())
    halves, images = dlip.load(folder), [Scenes("test")[i].image for i in range(4)]
    assert precision(halves.med) == "fp32"
    torch.testing.assert_close(halves.image_states(images), original.image_states(images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bf16_is_warned_about(native, make_vlm, monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    for accelerator in (torch.accelerator, torch.cuda):
        monkeypatch.setattr(accelerator, "is_available", lambda: False)
    folder, images = to_dlip("scenes/student", tmp_path, "bf16")[0]["bf16"], Scenes("train-small", size=4)
    stop_before_training = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("dlip.training.loop.check_divisible", stop_before_training)
    monkeypatch.setattr("dlip.experiments.ablation._run", Mock(return_value={}))

    def start_training(precision: str) -> None:
        with pytest.raises(KeyboardInterrupt):
            train(make_vlm(), images, TrainConfig(precision=precision, batch_size=4), tmp_path / "run")

    for work, advice in (
        (lambda: VLM.load(folder), f"{folder} is faster here"),
        (lambda: start_training("bf16"), "--precision no"),
        (lambda: ablate([], FULL, out=tmp_path / "a", results=tmp_path / "b.jsonl"), "--quick ones do not"),
        (lambda: start_training("no"), None),
        (lambda: ablate([], QUICK, out=tmp_path / "a", results=tmp_path / "b.jsonl"), None),
        (lambda: VLM.load("scenes/student"), None),
    ):
        recwarn.clear()
        work()
        warned = [str(warning.message) for warning in recwarn if "bf16" in str(warning.message)]
        assert len(warned) == bool(advice and not native)
        assert all("no instructions for bf16, so it is slow" in one and advice in one for one in warned)


def test_packed_model_gives_the_same_and_only_does_inference(make_vlm, scenes, tmp_path):
    original = make_vlm(image_width=304, text_width=304)  # wide enough to be packed
    packed, images = VLM(copy.deepcopy(original.med), original.tokenizer).pack(), [scenes[i].image for i in range(3)]
    assert any(layer.packed is not None for layer in packed.med.modules() if isinstance(layer, Linear))
    with torch.inference_mode():
        assert packed.caption(images) == original.caption(images)
        torch.testing.assert_close(packed.embed_images(images), original.embed_images(images), atol=1e-5, rtol=0)
    config = TrainConfig(steps=1, batch_size=4)
    for use in (
        lambda: packed.save(tmp_path),
        lambda: packed.to("cpu"),
        lambda: load_weights(packed.med, weights(original.med)),
        lambda: convert_precision(packed.med, "bf16"),
        lambda: packed.med.encode_image(torch.rand(1, 3, 64, 64, requires_grad=True)),
        lambda: train(packed, scenes, config, tmp_path / "a", progress=False),
        lambda: train(original, scenes, config.replace(weights=VLP | HR), tmp_path / "b", packed, progress=False),
    ):
        with pytest.raises(UserError, match="a packed model has no weights left"):
            use()
