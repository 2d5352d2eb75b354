"""A model as its users see it: pictures and words in, words and scores out."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dlip.checkpoints.load import load_model, save_model
from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import as_list, load_image, resize_square
from dlip.models.composite import Composite
from dlip.models.fast.precision import pack
from dlip.models.generate import beam_search, generate
from dlip.models.med import Med

ImageInput = Image.Image | str | Path
ANSWER = 10
"""Tokens of an answer at most."""


class VLM:
    """A MED with its tokenizer. Every method takes PIL images or paths and runs in eval mode without gradients.

    Raises MissingAbility, a UserError, where a method is called that the model's checkpoint has no weights for.
    """

    def __init__(self, med: Med | Composite, tokenizer: Tokenizer, name: str = "model"):
        self.med, self.tokenizer, self.name = med, tokenizer, name

    @classmethod
    def load(cls, name: str | Path) -> "VLM":
        """A model by name, as `dlip.checkpoints.load.load_model` reads it: a built-in (`scenes/teacher`), a run
        folder, a
        BLIP of the hub or of a folder, an original `.pth`, several joined by "+". Raises UserError where there is none.
        """
        return cls(*load_model(name), name=str(name))

    def save(self, folder: str | Path) -> None:
        """A folder that `load` reads. Raises UserError where the model is packed."""
        save_model(self.med, self.tokenizer, folder)

    def pack(self) -> "VLM":
        """The model itself, faster on a CPU from now on, and for nothing else: `dlip.models.fast.precision.pack`."""
        pack(self.med)
        return self

    @property
    def device(self) -> torch.device:
        return self.med.temp.device

    def pixels(self, images: Iterable[ImageInput], med: Med | None = None) -> torch.Tensor:
        """Pictures as the squares that `med`, of a composite the first, reads, uint8 [B, 3, S, S].

        Raises UserError where one cannot be read.
        """
        side = (med or self.med.model_for_states("image")).config.image_size
        squares = np.stack([resize_square(load_image(image), side) for image in images])  # [B, S, S, 3]
        return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()

    def texts(self, texts: Iterable[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [N, T] and mask bool [N, T], cut at the model's longest text."""
        ids, mask = self.tokenizer.encode(list(texts), max_length=self.med.config.max_text)
        return ids.to(self.device), mask.to(self.device)

    def words_read(self, text: str) -> int:
        """How many words of a text, as spaces part them, are read: a long text is cut."""
        text = text.encode(errors="replace").decode()  # as the tokenizer reads halves of characters
        self.tokenizer.fast.enable_truncation(self.med.config.max_text)
        ends = (end for _, end in self.tokenizer.fast.encode(text).offsets)
        return len(text[: max(ends, default=0)].split())

    def image_states(self, images: Iterable[ImageInput], med: Med | None = None) -> torch.Tensor:
        """States [B, P+1, Di] of the image encoder of `med`, of a composite that of the first."""
        med = med or self.med.model_for_states("image")
        return med.encode_image(med.normalize(self.pixels(images, med).to(self.device)))

    @torch.inference_mode()
    def caption(
        self, images: Iterable[ImageInput], num_beams: int = 3, max_new_tokens: int = 20, top_p: float | None = None
    ) -> list[str]:
        """One caption a picture, without the prompt: by beam search, greedily (one beam), or sampled (`top_p`)."""
        images = as_list(images, "picture")
        if not images:
            return []
        med = self.med.model_for("lm").eval()
        prompt = torch.tensor([[med.config.dec_id, *med.config.prompt_ids]], device=self.device)
        prompt = prompt.expand(len(images), -1)
        rows = generate(med, self.image_states(images, med), None, prompt, num_beams, max_new_tokens, top_p)
        return self.tokenizer.decode([row[prompt.shape[1] :] for row in rows])

    @torch.inference_mode()
    def answer(self, images: Iterable[ImageInput], questions: Iterable[str], num_beams: int = 3) -> list[str]:
        """The answer to each picture's question. Raises UserError where their numbers differ."""
        images, questions = _paired(images, questions, "question")
        if not images:
            return []
        return self.tokenizer.decode(generate(*self._asked(images, questions), num_beams, ANSWER))

    @torch.inference_mode()
    def top_answers(
        self, images: Iterable[ImageInput], questions: Iterable[str], k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The answers to each picture's question that a search with `k` beams (2 or more) ends with, the most probable
        first, each with the probability, 0 to 1, that the decoder says it and ends there. Raises UserError as `answer`.
        """
        images, questions = _paired(images, questions, "question")
        if not images:
            return []
        out = []
        for found in beam_search(*self._asked(images, questions), k, ANSWER):
            texts = self.tokenizer.decode([row for _, row in found])
            probabilities = [math.exp(mean * (len(row) - 1)) for mean, row in found]  # the first token is given
            out.append(sorted(zip(texts, probabilities, strict=True), key=lambda answer: -answer[1]))
        return out

    def _asked(self, images: list, questions: list[str]) -> tuple[Med, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What answers come from: the model, the questions' states [N, Q, Di] and mask, and first tokens [N, 1]."""
        med = self.med.model_for("vqa").eval()
        fused, mask = self._fused(images, questions, med)
        begin = torch.full((len(images), 1), med.config.dec_id, device=self.device)
        return med, med.question_states(fused), mask, begin

    def _fused(self, images: list, texts: list[str], med: Med) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts read together with their pictures [N, T, Dt], and their mask; a picture that comes several times, as
        one object, is encoded once."""
        ids, mask = self.texts(texts)
        distinct = {id(image): image for image in images}
        places = {key: place for place, key in enumerate(distinct)}
        rows = torch.tensor([places[id(image)] for image in images], device=self.device)
        return med.fuse(ids, mask, self.image_states(distinct.values(), med), rows), mask

    def similarity(self, images: Iterable[ImageInput], texts: Iterable[str]) -> torch.Tensor:
        """ITC cosine of every picture with every text [I, T]."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    @torch.inference_mode()
    def embed_images(self, images: Iterable[ImageInput]) -> torch.Tensor:
        """Pictures as ITC compares them, unit vectors [I, E], for galleries that are searched more than once."""
        images, med = as_list(images, "picture"), self.med.model_for("itc").eval()
        if not images:
            return torch.zeros(0, med.config.embed_dim, device=self.device)
        return med.project_image(self.image_states(images, med))

    @torch.inference_mode()
    def embed_texts(self, texts: Iterable[str]) -> torch.Tensor:
        """Texts as ITC compares them, unit vectors [T, E]."""
        texts, med = as_list(texts, "text"), self.med.model_for("itc").eval()
        if not texts:
            return torch.zeros(0, med.config.embed_dim, device=self.device)
        return med.project_text(med.encode_text(*self.texts(texts)))

    @torch.inference_mode()
    def match(self, images: Iterable[ImageInput], texts: Iterable[str]) -> torch.Tensor:
        """ITM probability that each text describes its picture [N]. Raises UserError where their numbers differ."""
        images, texts = _paired(images, texts, "text")
        if not images:
            return torch.zeros(0)
        med = self.med.model_for("itm").eval()
        return med.match_logits(self._fused(images, texts, med)[0]).softmax(-1)[:, 1]


def _paired(images, texts, noun: str) -> tuple[list, list]:
    images, texts = as_list(images, "picture"), as_list(texts, noun)
    if len(images) != len(texts):
        raise UserError(
            f"{plural(len(images), 'picture')} came with {plural(len(texts), noun)}; give one {noun} a picture"
        )
    return images, texts
