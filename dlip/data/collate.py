"""Items to a Batch: which of a picture's texts it shows, the pixels, the padding."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from dlip.data.batch import Batch, Item, Question
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import augment, resize_square

T = TypeVar("T")
MAX_SHIFT = 3
"""pixels that a drawn picture is moved by at most"""
_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass
class Collate:
    """Makes a Batch of one caption and some questions (with one answer each) of each item.

    With `train` they are drawn anew each epoch, and the pictures varied where `augment` says so. Every draw depends on
    (seed, epoch, image_id) alone: batches are the same in a resumed run, in any order, by any worker. Without it
    the first caption and questions and the commonest answer are taken, and the whole picture.

    Where an item lacks a caption, the row holds the first token and padding, with that token alone attended to: nothing
    is all masked out, so no NaN, and `mask[:, 1:]` is false throughout, so the row has no target to predict;
    `Batch.captioned` tells which rows are real. In training a batch without any question has such a row for one, so
    that every batch, in every process, goes the same way through the losses.
    """

    tokenizer: Tokenizer
    image_size: int
    """pixels a side"""
    train: bool = False
    max_text: int | None = 30
    """tokens of a caption, question or answer, its first and last included; longer ones are cut"""
    seed: int = 0
    augment: bool = False
    """vary the pictures in training: photos are cropped, drawn ones (arrays) shifted by up to `SHIFT` pixels"""
    flip: bool = False
    """with augment: also mirror photos, save those whose words at that time name left or right"""
    questions: int = 1
    """of each picture, or as many as it has"""
    epoch: int = 0
    """another one draws anew; workers have their own copy, see `train_loader`"""

    def __call__(self, items: list[Item]) -> Batch:
        rngs = [self._rng(item.image_id) for item in items]
        shown = [_draw(item.captions, rng) for item, rng in zip(items, rngs, strict=True)]
        captions = [item.captions[i] if item.captions else None for item, i in zip(items, shown, strict=True)]
        captions = [caption if caption and caption.strip() else None for caption in captions]
        asked = [self._ask(item.questions, rng) for item, rng in zip(items, rngs, strict=True)]
        questions = [pair for pairs in asked for pair in pairs]
        about = [row for row, pairs in enumerate(asked) for _ in pairs]
        if self.train and not questions:
            questions, about = [(None, None)], [0]
        pixels = [
            self._pixels(item.image, rng, [caption, *chain(*pairs)])
            for item, rng, caption, pairs in zip(items, rngs, captions, asked, strict=True)
        ]
        return Batch(
            torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),  # [B, 3, S, S]
            torch.tensor([item.image_id for item in items]),
            *self._encode(captions, "[CLS]"),
            *self._encode([question for question, _ in questions], "[CLS]"),
            *self._encode([answer for _, answer in questions], "[DEC]"),
            None if items[0].tags is None else torch.from_numpy(np.stack([item.tags for item in items])),
            torch.tensor(about) if about else None,
            torch.tensor(shown),
        )

    def _rng(self, image_id: int) -> np.random.Generator | None:
        return np.random.default_rng((self.seed, self.epoch, image_id)) if self.train else None

    def _ask(self, questions: list[Question], rng: np.random.Generator | None) -> list[tuple[str, str]]:
        """Some of a picture's questions, no one twice, and an answer to each."""
        order = range(len(questions)) if rng is None else rng.permutation(len(questions))
        return [(questions[i].text, self._answer(questions[i].answers, rng)) for i in order[: self.questions]]

    def _answer(self, answers: list[str], rng: np.random.Generator | None) -> str:
        """One annotator's in training, so that answers come as often as they were given."""
        return _pick(answers, rng) if self.train else Counter(answers).most_common(1)[0][0]

    def _pixels(
        self, image: Image.Image | np.ndarray, rng: np.random.Generator | None, words: list[str | None]
    ) -> np.ndarray:
        if rng is None or not self.augment:
            return resize_square(image, self.image_size)
        if isinstance(image, np.ndarray):
            return shift(resize_square(image, self.image_size), rng)
        return augment(image, self.image_size, rng, self.flip and not _SIDE.search(" ".join(filter(None, words))))

    def _encode(self, texts: list[str | None], first: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """ids and mask [B, T]; where there is no text at all two Nones, save in training."""
        rows = [row for row, text in enumerate(texts) if text is not None]
        if not rows and not self.train:
            return None, None
        some_ids, some_mask = self.tokenizer.encode([texts[row] for row in rows], first, self.max_text)
        ids = torch.full((len(texts), max(2, some_ids.shape[1])), self.tokenizer.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        ids[:, 0], mask[:, 0] = self.tokenizer.fast.token_to_id(first), True
        if rows:
            ids[rows], mask[rows] = some_ids, some_mask
        return ids, mask


def shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[S, S, 3] moved by up to `SHIFT` pixels each way, its edges repeated behind it."""
    row, column = rng.integers(0, 2 * MAX_SHIFT + 1, 2)
    wide = np.pad(image, ((MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0)), mode="edge")
    return wide[row : row + image.shape[0], column : column + image.shape[1]]


def _draw(options: list, rng: np.random.Generator | None) -> int:
    return 0 if rng is None or not options else int(rng.integers(len(options)))


def _pick(options: list[T], rng: np.random.Generator | None) -> T | None:
    return options[_draw(options, rng)] if options else None
