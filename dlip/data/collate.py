"""Items to a Batch: which of a picture's texts it shows, the pixels, the padding."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from dlip.data.batch import Batch, Item
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import augment, square

T = TypeVar("T")
SHIFT = 3
"""pixels that a drawn picture is moved by at most"""
_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass
class Collate:
    """Makes a Batch of one caption and one question (with one answer) of each item.

    With `train` they are drawn anew each epoch, and the pictures varied where `augment` says so. Every draw depends on
    (seed, epoch, image_id) alone: batches are the same in a resumed run, in any order, by any worker. Without it
    the first caption and question and the commonest answer are taken, and the whole picture.

    Where some items lack a caption or question and others have one, the row holds the first token and padding, with
    that token alone attended to: nothing is all masked out, so no NaN, and `mask[:, 1:]` is false throughout, so the
    row has no target to predict. `mask[:, 1]` (for answers `answer_mask[:, 1]`) tells which rows are real.
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
    epoch: int = 0
    """another one draws anew; workers have their own copy, see `train_loader`"""

    def __call__(self, items: list[Item]) -> Batch:
        rngs = [self._rng(item.image_id) for item in items]
        captions = [_pick(item.captions, rng) for item, rng in zip(items, rngs, strict=True)]
        asked = [_pick(item.questions, rng) for item, rng in zip(items, rngs, strict=True)]
        questions = [q and q.text for q in asked]
        answers = [q and self._answer(q.answers, rng) for q, rng in zip(asked, rngs, strict=True)]
        pixels = [
            self._pixels(item.image, rng, words)
            for item, rng, *words in zip(items, rngs, captions, questions, answers, strict=True)
        ]
        return Batch(
            torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),  # [B, 3, S, S]
            torch.tensor([item.image_id for item in items]),
            *self._encode(captions, "[CLS]"),
            *self._encode(questions, "[CLS]"),
            *self._encode(answers, "[DEC]"),
            None if items[0].tags is None else torch.from_numpy(np.stack([item.tags for item in items])),
        )

    def _rng(self, image_id: int) -> np.random.Generator | None:
        return np.random.default_rng((self.seed, self.epoch, image_id)) if self.train else None

    def _answer(self, answers: list[str], rng: np.random.Generator | None) -> str:
        """One annotator's in training, so that answers come as often as they were given."""
        return _pick(answers, rng) if self.train else Counter(answers).most_common(1)[0][0]

    def _pixels(
        self, image: Image.Image | np.ndarray, rng: np.random.Generator | None, words: list[str | None]
    ) -> np.ndarray:
        if rng is None or not self.augment:
            return square(image, self.image_size)
        if isinstance(image, np.ndarray):
            return shift(square(image, self.image_size), rng)
        return augment(image, self.image_size, rng, self.flip and not _SIDE.search(" ".join(filter(None, words))))

    def _encode(self, texts: list[str | None], first: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """ids and mask [B, T], or two Nones where there is no text at all."""
        rows = [row for row, text in enumerate(texts) if text is not None]
        if not rows:
            return None, None
        some_ids, some_mask = self.tokenizer.encode([texts[row] for row in rows], first, self.max_text)
        ids = torch.full((len(texts), some_ids.shape[1]), self.tokenizer.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        ids[:, 0], mask[:, 0] = some_ids[0, 0], True
        ids[rows], mask[rows] = some_ids, some_mask
        return ids, mask


def shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[S, S, 3] moved by up to `SHIFT` pixels each way, its edges repeated behind it."""
    row, column = rng.integers(0, 2 * SHIFT + 1, 2)
    wide = np.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    return wide[row : row + image.shape[0], column : column + image.shape[1]]


def _pick(options: list[T], rng: np.random.Generator | None) -> T | None:
    if not options:
        return None
    return options[0] if rng is None else options[rng.integers(len(options))]
