"""Models that write captions: a BLIP, or an image-text-to-text model of transformers."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from dlip.checkpoints.load import locate, parse_name, split_names
from dlip.common import machine
from dlip.common.errors import UserError, is_out_of_memory
from dlip.common.files import read_json
from dlip.data.transforms import as_pil
from dlip.recaptioning.config import WritingConfig
from dlip.vlm import VLM

CHAT_PROMPT = "Describe this image in one short sentence."
"""What a chat model is asked without --prompt."""


class Writer(Protocol):
    """A model that writes captions of images."""

    def write(self, images: list[Image.Image | np.ndarray], config: WritingConfig) -> list[list[str]]:
        """`config.captions` captions of each RGB image (or its pixels, uint8 [H, W, 3]), without the prompt."""


def open_writer(name: str) -> Writer:
    """The model of a name, on the accelerator if there is one. Raises UserError if there is none or it cannot write."""
    if len(split_names(name)) == 1 and is_stock(locate(parse_name(name).name)):
        return StockWriter(name)
    return BlipWriter(name)


def is_stock(path: Path) -> bool:
    """Whether a model's folder is of transformers and not a BLIP, which this package reads itself."""
    if not path.is_dir():
        return False
    config = read_json(path / "config.json")
    return "model" not in config and config.get("model_type") != "blip"


class BlipWriter:
    """Any model that `dlip.load` reads and that has a decoder."""

    def __init__(self, name: str):
        self.vlm = VLM.load(name)
        self.vlm.med.model_for("lm")
        self.vlm.med.to(machine.device())

    def write(self, images: list[Image.Image | np.ndarray], config: WritingConfig) -> list[list[str]]:
        top_p = None if config.beams else config.top_p
        return self.vlm.captions(images, config.captions, config.beams or 1, config.max_tokens, top_p, config.prompt)


class StockWriter:
    """Any `AutoModelForImageTextToText` of transformers, with its processor."""

    def __init__(self, name: str):
        """Raise UserError if the model or its processor cannot be loaded."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.name = name
        try:
            own = {"trust_remote_code": False}
            self.processor = AutoProcessor.from_pretrained(name, **own)
            self.model = (
                AutoModelForImageTextToText.from_pretrained(name, dtype="auto", **own).to(machine.device()).eval()
            )
        except Exception as error:  # the library raises nearly anything
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{name} cannot be loaded as an image-text-to-text model of transformers ({error}); check its files, "
                "or name another model"
            ) from error
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.padding_side = "left"  # as texts are continued on the right
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    @torch.inference_mode()
    def write(self, images: list[Image.Image | np.ndarray], config: WritingConfig) -> list[list[str]]:
        """As `Writer.write`. Raises UserError if the model refuses the prompt."""
        images = [as_pil(image) for image in images]
        sampling = {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_p": config.top_p, "top_k": 0}
        how = {"do_sample": False, "num_beams": config.beams} if config.beams else sampling
        try:
            inputs = self._inputs(images, config.prompt).to(self.model.device, self.model.dtype)
            rows = self.model.generate(
                **inputs, **how, num_return_sequences=config.captions, max_new_tokens=config.max_tokens
            )
        except Exception as error:  # models and processors raise nearly anything
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.name} cannot write with the prompt {config.prompt!r} ({error}); pass the --prompt that its "
                "model card shows"
            ) from error
        texts = self._decode(rows)
        if "input_ids" in inputs:  # most models return the prompt too
            prompts = [text for text in self._decode(inputs["input_ids"]) for _ in range(config.captions)]
            texts = [text.removeprefix(prompt).strip() for text, prompt in zip(texts, prompts, strict=True)]
        return [texts[first : first + config.captions] for first in range(0, len(texts), config.captions)]

    def _inputs(self, images: list[Image.Image], prompt: str | None):
        """What the model reads: the images in a chat where the processor has a template for one, else beside the
        prompt, if there is one."""
        options: dict = {"images": images, "return_tensors": "pt"}
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt or CHAT_PROMPT}]
            chat = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
            options["images"] = [[image] for image in images]
            if text.startswith(self.processor.tokenizer.bos_token or "\0"):
                options["add_special_tokens"] = False  # else there would be two
        else:
            text = prompt
        if text is not None:
            options |= {"text": [text] * len(images), "padding": True}
        return self.processor(**options)

    def _decode(self, rows: torch.Tensor) -> list[str]:
        return [" ".join(text.split()) for text in self.processor.batch_decode(rows, skip_special_tokens=True)]
