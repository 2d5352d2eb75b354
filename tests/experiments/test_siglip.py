"""The dual-encoder teacher of scenes, against the ViT that it begins as."""

import torch
from transformers import ViTModel

import dlip
from dlip.checkpoints.load import locate
from dlip.data.scenes.dataset import Scenes
from dlip.experiments import siglip


def test_image_encoder_is_initialized_from_the_vit():
    vit = ViTModel.from_pretrained(locate(siglip.IMAGE_ENCODER), add_pooling_layer=False, dtype=torch.float32).eval()
    ours = siglip.new_siglip(vocabulary=10).vision_model.eval()
    pixels = torch.randn(2, 3, 64, 64)
    patches = vit.embeddings(pixels)[:, 1:]
    expected, found = patches, ours.embeddings(pixels)
    torch.testing.assert_close(found, expected)
    for theirs, own in zip(vit.layers, ours.encoder.layers, strict=True):
        expected, found = theirs(expected), own(found, attention_mask=None)
    torch.testing.assert_close(ours.post_layernorm(found), vit.layernorm(expected), atol=1e-5, rtol=1e-5)


def test_trained_folder_is_a_dual_encoder(tmp_path):
    siglip.train(tmp_path / "siglip", steps=2, batch_size=4)
    model, scenes = dlip.load(tmp_path / "siglip"), Scenes("val")
    assert model.med.abilities == {"itc"}
    assert model.similarity([scenes[0].image], scenes[0].captions).shape == (1, 5)


def test_no_caption_is_cut():
    tokenizer, scenes = siglip.new_tokenizer(), Scenes("train-large")
    captions = [caption for i in range(200) for caption in scenes[i].captions]
    assert max(map(len, tokenizer(captions)["input_ids"])) <= siglip.MAX_TEXT
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(captions)["input_ids"])
