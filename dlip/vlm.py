"""A model as its users see it: pictures and words in, words and scores out."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dlip.checkpoints import load_model, save_model
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import read_image, square, to_rgb
from dlip.errors import UserError
from dlip.generate import generate
from dlip.model import Med

Picture = Image.Image | str | Path


class VLM:
    """A MED with its tokenizer. Every method takes PIL images or paths and runs in eval mode without gradients."""

    def __init__(self, med: Med, tokenizer: Tokenizer, name: str = "model"):
        self.med, self.tokenizer, self.name = med, tokenizer, name

    @classmethod
    def load(cls, name: str | Path) -> "VLM":
        """A built-in model (`scenes/teacher`) or a run folder. Raises UserError where there is none of that name."""
        return cls(*load_model(name), name=str(name))

    def save(self, folder: str | Path) -> None:
        save_model(self.med, self.tokenizer, folder)

    @property
    def device(self) -> torch.device:
        return self.med.temp.device

    def pixels(self, images: Iterable[Picture]) -> torch.Tensor:
        """Pictures as the squares this model reads, uint8 [B, 3, S, S]. Raises UserError where one cannot be read."""
        squares = np.stack([square(upright(image), self.med.config.image_size) for image in images])  # [B, S, S, 3]
        return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()

    def texts(self, texts: Iterable[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [N, T] and mask bool [N, T], cut at the model's longest text."""
        ids, mask = self.tokenizer.encode(list(texts), max_length=self.med.config.max_text)
        return ids.to(self.device), mask.to(self.device)

    def image_states(self, images: Iterable[Picture]) -> torch.Tensor:
        return self.med.encode_image(self.med.normalise(self.pixels(images).to(self.device)))  # [B, P+1, Di]

    @torch.inference_mode()
    def caption(
        self, images: Iterable[Picture], num_beams: int = 3, max_new_tokens: int = 20, top_p: float | None = None
    ) -> list[str]:
        """One caption a picture, without the prompt: by beam search, greedily (one beam), or sampled (`top_p`)."""
        images = list(images)
        if not images:
            return []
        med = self.med.eval()
        prompt = torch.tensor([[med.config.dec_id, *med.config.prompt_ids]], device=self.device)
        prompt = prompt.expand(len(images), -1)
        rows = generate(med, self.image_states(images), None, prompt, num_beams, max_new_tokens, top_p)
        return self.tokenizer.decode([row[prompt.shape[1] :] for row in rows])

    @torch.inference_mode()
    def answer(self, images: Iterable[Picture], questions: Iterable[str], num_beams: int = 3) -> list[str]:
        """The answer to each picture's question. Raises UserError where their numbers differ."""
        images, questions = _paired(images, questions, "question")
        if not images:
            return []
        med = self.med.eval()
        ids, mask = self.texts(questions)
        states = med.question_states(med.fuse(ids, mask, self.image_states(images)))
        start = ids.new_full((len(images), 1), med.config.dec_id)
        return self.tokenizer.decode(generate(med, states, mask, start, num_beams, 10))

    @torch.inference_mode()
    def similarity(self, images: Iterable[Picture], texts: Iterable[str]) -> torch.Tensor:
        """ITC cosine of every picture with every text [I, T]."""
        images, texts, med = list(images), list(texts), self.med.eval()
        if not images or not texts:
            return torch.zeros(len(images), len(texts))
        image = med.project_image(self.image_states(images))
        return image @ med.project_text(med.encode_text(*self.texts(texts))).T

    @torch.inference_mode()
    def match(self, images: Iterable[Picture], texts: Iterable[str]) -> torch.Tensor:
        """ITM probability that each text describes its picture [N]. Raises UserError where their numbers differ."""
        images, texts = _paired(images, texts, "text")
        if not images:
            return torch.zeros(0)
        med = self.med.eval()
        return med.match_logits(med.fuse(*self.texts(texts), self.image_states(images))).softmax(-1)[:, 1]


def upright(image: Picture | np.ndarray) -> Image.Image | np.ndarray:
    """A picture, a path or pixels, ready to be resized."""
    if isinstance(image, str | Path):
        return read_image(image)
    return to_rgb(image) if isinstance(image, Image.Image) else image


def _paired(images, texts, noun: str) -> tuple[list, list]:
    images, texts = list(images), list(texts)
    if len(images) != len(texts):
        raise UserError(f"{len(images)} pictures came with {len(texts)} {noun}s; give one {noun} a picture")
    return images, texts
