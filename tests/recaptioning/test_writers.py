"""Captions equal those that the models give by themselves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dlip.common.errors import MissingAbility, UserError
from dlip.recaptioning.config import WritingConfig
from dlip.recaptioning.writers import CHAT_PROMPT, BlipWriter, StockWriter, open_writer
from dlip.vlm import VLM
from tests.checkpoints.helpers import stock, stock_folder
from tests.recaptioning.helpers import git, llava

IMAGES = [Image.new("RGB", (24, 20), "red"), np.full((20, 30, 3), 90, np.uint8)]
PIL_IMAGES = [IMAGES[0], Image.fromarray(IMAGES[1])]


def greedy(folder, **options) -> WritingConfig:
    return WritingConfig(writer=str(folder), captions=1, beams=1, max_tokens=6, **options)


def after_the_prompt(model, processor, texts, **options) -> list[list[str]]:
    """Greedy texts by the library alone, without the tokens that were put in."""
    inputs = processor(images=PIL_IMAGES, text=texts, padding=True, return_tensors="pt", **options)
    with torch.no_grad():
        rows = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    return [
        [text] for text in processor.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


@pytest.mark.parametrize("prompt", [None, "a red star"])
def test_chat_model(tmp_path, prompt):
    model, processor = llava(tmp_path)
    writer = open_writer(str(tmp_path))
    assert isinstance(writer, StockWriter)
    text = f"<s> USER : <image> {prompt or CHAT_PROMPT} ASSISTANT : "
    expected = after_the_prompt(model, processor, [text] * 2, add_special_tokens=False)
    assert writer.write(IMAGES, greedy(tmp_path, prompt=prompt)) == expected
    assert all(texts[0] for texts in expected) and expected[0] != expected[1]


def test_model_without_chat_takes_the_prompt_as_it_is(tmp_path):
    model, processor = llava(tmp_path, chat=False)
    prompt = "USER : <image> a red star ASSISTANT :"
    writer = open_writer(str(tmp_path))
    expected = after_the_prompt(model, processor, [prompt] * 2)
    assert writer.write(IMAGES, greedy(tmp_path, prompt=prompt)) == expected
    for wrong in (None, "a star"):
        with pytest.raises(UserError, match="cannot write with the prompt .* pass the --prompt that its model card"):
            writer.write(IMAGES, greedy(tmp_path, prompt=wrong))


def test_model_without_prompt(tmp_path):
    model, processor = git(tmp_path)
    writer = open_writer(str(tmp_path))
    rows = model.generate(
        **processor(images=PIL_IMAGES, return_tensors="pt"), num_beams=4, num_return_sequences=3, max_new_tokens=6
    )
    texts = processor.batch_decode(rows, skip_special_tokens=True)
    config = WritingConfig(writer=str(tmp_path), captions=3, beams=4, max_tokens=6)
    assert writer.write(IMAGES, config) == [texts[:3], texts[3:]]
    torch.manual_seed(0)
    sampled = writer.write(IMAGES, WritingConfig(writer=str(tmp_path), captions=5, top_p=0.99, max_tokens=6))
    assert [len(texts) for texts in sampled] == [5, 5] and len({text for own in sampled for text in own}) > 5
    writer.model.generation_config.temperature = 1e-6  # as some checkpoints have it: all captions would be the same
    torch.manual_seed(0)
    assert writer.write(IMAGES, WritingConfig(writer=str(tmp_path), captions=5, top_p=0.99, max_tokens=6)) == sampled
    (prompted,) = writer.write(IMAGES[:1], greedy(tmp_path, prompt="a red star"))
    assert prompted == after_the_prompt(model, processor, ["a red star"] * 2)[0]


def test_published_blip_is_read_as_blip(tmp_path):
    stock_folder(stock("captioning"), tmp_path)
    writer = open_writer(str(tmp_path))
    assert isinstance(writer, BlipWriter)
    expected = [[text] for text in VLM.load(tmp_path).caption(PIL_IMAGES, num_beams=1, max_new_tokens=6)]
    assert writer.write(IMAGES, greedy(tmp_path)) == expected
    config = WritingConfig(writer=str(tmp_path), captions=2, beams=3, max_tokens=6, prompt="a red")
    assert writer.write(IMAGES, config) == VLM.load(tmp_path).captions(PIL_IMAGES, 2, 3, 6, prompt="a red")
    torch.manual_seed(0)
    sampled = writer.write(IMAGES, WritingConfig(writer=str(tmp_path), max_tokens=6))
    torch.manual_seed(0)
    assert sampled == VLM.load(tmp_path).captions(PIL_IMAGES, 3, max_new_tokens=6, top_p=0.9)


def test_models_that_cannot_write(tmp_path):
    with pytest.raises(UserError, match="there is no model 'nowhere'"):
        open_writer("nowhere")
    stock_folder(stock("retrieval"), tmp_path / "retrieval")
    with pytest.raises(MissingAbility, match="cannot write captions"):
        open_writer(str(tmp_path / "retrieval"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="bert cannot be loaded as an image-text-to-text model of transformers"):
        open_writer(str(tmp_path / "bert"))
    llava(tmp_path / "llava")
    (tmp_path / "llava" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="llava cannot be loaded"):
        open_writer(str(tmp_path / "llava"))
