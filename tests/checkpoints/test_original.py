"""Original BLIP files give the outputs of the stock classes; head counts, which they lack, are never guessed."""

import json

import pytest
import torch
from torch import nn
from transformers import BlipConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

import dlip
from dlip.common.errors import UserError
from tests.checkpoints.helpers import (
    CLIP,
    MED_CONFIG,
    TEXTS,
    named,
    pixels,
    stock,
    to_original_names,
    until_end,
    with_enc,
    with_training_state,
    write,
)
from tests.helpers import shaken


@pytest.mark.parametrize("width", [128, 192])
@torch.no_grad()
def test_original_retrieval_file(width, images, tmp_path):
    stock_model = stock("retrieval", width, eps=1e-6)
    model = dlip.load(named(write(with_training_state(to_original_names(stock_model.state_dict())), tmp_path), width))
    assert model.med.abilities == {"itc", "itm"} and model.med.temp.item() == pytest.approx(0.0321)
    ids, mask = model.tokenize(TEXTS)
    score = stock_model(ids, pixels(images, **CLIP), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)
    match = stock_model(with_enc(ids), pixels(images, **CLIP), attention_mask=mask.long()).itm_score.softmax(-1)[:, 1]
    torch.testing.assert_close(model.match(images, TEXTS), match, atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [128, 192])
@torch.no_grad()
def test_original_captioning_file_starts_with_its_prompt(width, images, tmp_path):
    stock_model = stock("captioning", width, eps=1e-6)
    model = dlip.load(named(write(to_original_names(stock_model.state_dict()), tmp_path), width))
    prompt, _ = model.tokenizer.encode(["a picture of"], first="[DEC]")
    assert model.med.config.prompt_ids == tuple(prompt[0, 1:-1].tolist()) == (5, 6, 7)
    prompt = prompt.expand(3, -1)  # with its [SEP], which the stock class cuts off
    generated = stock_model.generate(
        pixels(images, **CLIP), prompt.clone(), num_beams=3, max_new_tokens=12, do_sample=False
    )
    assert model.caption(images, 3, 12) == until_end(generated[:, 4:], model)


@pytest.mark.parametrize("width", [128, 192])
@torch.no_grad()
def test_original_vqa_file(width, images, tmp_path):
    """The large one's decoder reads questions in text width, which the stock class does not support."""
    complete = stock("vqa", width, eps=1e-6)
    encoder, decoder = (BlipTextModel(complete.config.text_config, add_pooling_layer=False), complete.text_decoder)
    encoder.load_state_dict(complete.text_encoder.state_dict())
    narrow = BlipConfig(text_config={**complete.config.text_config.to_dict()}, vision_config={"hidden_size": 128})
    if width != 128:
        decoder = shaken(BlipTextLMHeadModel(narrow.text_config))
    state = {name: t for name, t in complete.state_dict().items() if not name.startswith("text_decoder")}
    state |= {f"text_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    model = dlip.load(named(write(to_original_names(state), tmp_path), width))
    assert model.med.abilities == {"vqa"}
    ids, mask = model.tokenize(["what is it ?"] * 3)  # of one length: the stock class lets answers attend to pads
    seen = complete.vision_model(pixels(images, **CLIP))[0]
    fused = encoder.eval()(with_enc(ids), mask.long(), encoder_hidden_states=seen)[0]
    answers, _ = model.tokenizer.encode(["a red cat", "a star", "it"], first="[DEC]")
    logits = decoder.eval()(answers, encoder_hidden_states=fused, encoder_attention_mask=mask.long()).logits
    states = model.med.question_states(model.med.fuse(ids, mask, model.image_states(images)))
    torch.testing.assert_close(model.med.decode(answers, states, mask), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("apart", [True, False])
@torch.no_grad()
def test_original_pretraining_file(apart, images, tmp_path):
    """Encoder and decoder share all but self-attention; the head is its own since BLIP ties the encoders after it."""
    encoder, decoder = stock("retrieval", 192, eps=1e-6), stock("captioning", 192, eps=1e-6).text_decoder
    decoder.cls.predictions.decoder.weight = nn.Parameter(decoder.cls.predictions.decoder.weight.clone())
    for name, parameter in decoder.bert.named_parameters():
        if ".attention." not in name:
            parameter.copy_(encoder.text_encoder.get_parameter(name))
    if not apart:
        decoder.cls.predictions.decoder.weight.copy_(decoder.bert.embeddings.word_embeddings.weight)
    state = encoder.state_dict() | {f"text_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    model = dlip.load(named(write(with_training_state(to_original_names(state)), tmp_path), 192))
    c = model.med.config
    assert model.med.abilities == {"itc", "itm", "lm"} and c.tie_decoder and c.tie_head != apart and c.prompt_ids == ()
    ids, mask = model.tokenize(TEXTS)
    score = encoder(ids, pixels(images, **CLIP), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)
    captions, _ = model.tokenizer.encode(TEXTS, first="[DEC]")
    logits = decoder(captions, encoder_hidden_states=encoder.vision_model(pixels(images, **CLIP))[0]).logits
    logits_of_model = model.med.decode(captions, model.image_states(images))
    torch.testing.assert_close(logits_of_model[mask], logits[mask], atol=1e-4, rtol=0)
    model.save(tmp_path / "saved")
    again = dlip.load(tmp_path / "saved")
    torch.testing.assert_close(again.med.decode(captions, again.image_states(images)), logits_of_model, atol=0, rtol=0)


@torch.no_grad()
def test_another_image_size_interpolates_the_positions(images, tmp_path):
    """6 patches per side where the file has 4, interpolated by hand as in BLIP's vit.py."""
    state = to_original_names(stock("retrieval", eps=1e-6).state_dict())
    path = write(state, tmp_path)
    model = dlip.load(named(f"{path}@48"))
    positions = state["visual_encoder.pos_embed"]
    grid = positions[:, 1:].reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    resized = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    large, small = stock("retrieval", size=48, eps=1e-6), stock("retrieval", eps=1e-6).state_dict()
    large.load_state_dict({**small, "vision_model.embeddings.position_embedding": resized})
    ids, mask = model.tokenize(TEXTS)
    score = large(ids, pixels(images, **CLIP, size=48), use_itm_head=False, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_head_counts_are_never_guessed(images, tmp_path):
    """Checkpoints with the same weights, whose outputs depend on head counts that no shape shows."""
    path = write(to_original_names(stock("retrieval", eps=1e-6).state_dict()), tmp_path)
    beside = path.parent / "med_config.json"
    for image_heads, text_heads in ((1, 8), (2, 4), (4, 2), (8, 1)):
        stock_model = stock("retrieval", eps=1e-6, heads=(image_heads, text_heads))
        name = f"{path}:image_heads={image_heads}"
        beside.unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"how many heads .* as in model.pth:image_heads=N,text_heads=N"):
            dlip.load(path)
        model = dlip.load(f"{name},text_heads={text_heads}")
        ids, mask = model.tokenize(TEXTS)
        score = stock_model(ids, pixels(images, **CLIP), use_itm_head=False, attention_mask=mask.long()).itm_score
        torch.testing.assert_close(model.similarity(images, TEXTS), score, atol=1e-5, rtol=0)
        beside.write_text(json.dumps(MED_CONFIG | {"num_attention_heads": text_heads}))
        with pytest.raises(UserError, match=r"as in model.pth:image_heads=N$"):
            dlip.load(path)
        torch.testing.assert_close(dlip.load(name).similarity(images, TEXTS), score, atol=1e-5, rtol=0)
    beside.write_text(json.dumps(MED_CONFIG | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="num_hidden_layers"):
        dlip.load(name)
