"""Low precision: nearly equal results, and what packed models are refused for."""

import copy

import pytest
import torch

from dlip.checkpoints.load import save_model
from dlip.checkpoints.tensors import load_weights, weights
from dlip.common.errors import UserError
from dlip.models.fast.linear import Linear
from dlip.models.fast.precision import convert_precision, precision
from dlip.vlm import VLM


@pytest.fixture(scope="module")
def student() -> VLM:
    return VLM.load("scenes/student")


def test_results_in_bf16_are_nearly_equal(student, scenes, tmp_path):
    low = VLM(convert_precision(copy.deepcopy(student.med), "bf16"), student.tokenizer)
    low.save(tmp_path)
    low, images, texts = VLM.load(tmp_path), [item.image for item in scenes], [item.captions[0] for item in scenes]
    torch.testing.assert_close(low.similarity(images, texts), student.similarity(images, texts), atol=0.03, rtol=0)
    assert sum(a == b for a, b in zip(low.caption(images), student.caption(images), strict=True)) >= 5
    assert low.med.image_mean.dtype == torch.float32 and low.med.vision_proj.weight.dtype == torch.bfloat16
    assert (precision(student.med), precision(low.med)) == ("fp32", "bf16")


def test_fp16_halves_the_weights_and_is_read_as_fp32(student, scenes, tmp_path):
    save_model(student.med, student.tokenizer, tmp_path, half=True, shard_mb=1)
    stored = [path.stat().st_size for path in tmp_path.glob("model-*-of-*.safetensors")]
    assert max(stored) < 1.1e6 and sum(stored) < 0.55 * sum(p.nbytes for p in student.med.parameters())
    halves, images = VLM.load(tmp_path), [item.image for item in scenes]
    assert precision(halves.med) == "fp32"
    torch.testing.assert_close(halves.image_states(images), student.image_states(images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bf16_is_warned_about(native, student, monkeypatch, tmp_path, recwarn):
    VLM(convert_precision(copy.deepcopy(student.med), "bf16"), student.tokenizer).save(tmp_path)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    for accelerator in (torch.accelerator, torch.cuda):
        monkeypatch.setattr(accelerator, "is_available", lambda: False)
    for name, low in ((tmp_path, True), ("scenes/student", False)):
        recwarn.clear()
        VLM.load(name)
        assert any("bf16" in str(warning.message) for warning in recwarn) == (low and not native)


def test_packed_model_gives_the_same_and_only_does_inference(make_vlm, scenes, tmp_path):
    original = make_vlm(image_width=304, text_width=304)  # wide enough to be packed
    packed, images = VLM(copy.deepcopy(original.med), original.tokenizer).pack(), [scenes[i].image for i in range(3)]
    assert any(layer.packed is not None for layer in packed.med.modules() if isinstance(layer, Linear))
    with torch.inference_mode():
        assert packed.caption(images) == original.caption(images)
        torch.testing.assert_close(packed.embed_images(images), original.embed_images(images), atol=1e-5, rtol=0)
    for use in (
        lambda: packed.save(tmp_path),
        lambda: packed.to("cpu"),
        lambda: load_weights(packed.med, weights(original.med)),
        lambda: convert_precision(packed.med, "bf16"),
        lambda: packed.med.encode_image(torch.rand(1, 3, 64, 64, requires_grad=True)),
    ):
        with pytest.raises(UserError, match="packed"):
            use()
