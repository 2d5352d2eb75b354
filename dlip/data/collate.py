"""Items to a Batch: choice of texts, pixels, padding."""

import re
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from dlip.data.batch import Batch, Example, Question, squares
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import augment, load_image, resize_square

MAX_SHIFT = 3
"""Pixels by which the augmentation moves a drawn image at most."""
_SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass
class Collate:
    """Make a Batch to train on from items: of each, one caption and some questions with one answer each.

    They are drawn anew each epoch. Every draw depends on (seed, epoch, image_id) alone, so that batches are the same in
    a resumed run, in any order, by any worker.

    The row of an image without caption holds a first token and padding, and only that token is attended to: no row is
    all masked out, so there is no NaN, and `mask[:, 1:]` is false, so there is no target. A batch without any question
    has one such row for a question, so that all batches of all processes compute the same losses.
    """

    tokenizer: Tokenizer
    image_size: int
    """Height and width in pixels."""
    max_text: int = 30
    """Maximum tokens of a caption, question or answer, with its first and last; longer ones are truncated."""
    seed: int = 0
    augment: bool = False
    """Crop photos, and shift drawn images (arrays) by up to `MAX_SHIFT` pixels."""
    flip: bool = False
    """With `augment`: also mirror photos, except those with a text that has the English word left or right."""
    questions: int = 1
    """Maximum number of questions per image."""
    views: int = 0
    """Augmented views of an image that epochs take in turn, equal for all seeds; 0 draws a new one every epoch."""
    reads_images: bool = True
    """Whether batches have pixels."""
    epoch: int = 0
    """Draws differ between epochs; `train_loader` sets it."""

    def __call__(self, items: list[Example]) -> Batch:
        rngs = [np.random.default_rng((self.seed, self.epoch, item.image_id % 2**64)) for item in items]
        caption_index = [_draw(item.captions, rng) for item, rng in zip(items, rngs, strict=True)]
        captions = [item.captions[i] if item.captions else None for item, i in zip(items, caption_index, strict=True)]
        captions = [caption if caption and caption.strip() else None for caption in captions]
        pairs = [self._question_pairs(item.questions, rng) for item, rng in zip(items, rngs, strict=True)]
        questions = [pair for some in pairs for pair in some]
        question_rows = [row for row, some in enumerate(pairs) for _ in some]
        if not questions:
            questions, question_rows = [(None, None)], [0]
        view = self.epoch % self.views if self.views else self.epoch
        return Batch(
            self.pixels(items, view) if self.reads_images else torch.empty(len(items), 0),
            torch.tensor([item.image_id for item in items]),
            *self._encode(captions, "[CLS]"),
            *self._encode([question for question, _ in questions], "[CLS]"),
            *self._encode([answer for _, answer in questions], "[DEC]"),
            None if items[0].tags is None else torch.from_numpy(np.stack([item.tags for item in items])),
            torch.tensor(question_rows),
            torch.tensor(caption_index),
            views=torch.full((len(items),), view) if self.views else None,
            captions=captions,
            vocabulary=self.tokenizer.vocabulary,
        )

    def _question_pairs(self, questions: list[Question], rng: np.random.Generator) -> list[tuple[str, str]]:
        """Different questions about one image, each with a random annotator's answer."""
        questions = [question for question in questions if question.answers]
        chosen = (questions[i] for i in rng.permutation(len(questions))[: self.questions])
        return [(question.text, question.answers[_draw(question.answers, rng)]) for question in chosen]

    def pixels(self, items: list[Example], view: int) -> torch.Tensor:
        """The images as uint8 [B, 3, S, S], with `augment` the view of that number."""
        return squares((self._view(item, view) for item in items), self.image_size)

    def _view(self, item: Example, view: int) -> np.ndarray:
        image = load_image(item.image)
        if not self.augment:
            return resize_square(image, self.image_size)
        rng = np.random.default_rng((0 if self.views else self.seed, view, item.image_id % 2**64, 1))
        if isinstance(image, np.ndarray):
            return shift(resize_square(image, self.image_size), rng)
        return augment(image, self.image_size, rng, self.flip and not _names_a_side(item))

    def _encode(self, texts: list[str | None], first: str) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask [B, T]."""
        rows = [row for row, text in enumerate(texts) if text is not None]
        some_ids, some_mask = self.tokenizer.encode([texts[row] for row in rows], first, self.max_text)
        ids = torch.full((len(texts), max(2, some_ids.shape[1])), self.tokenizer.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        ids[:, 0], mask[:, 0] = self.tokenizer.fast.token_to_id(first), True
        if rows:
            ids[rows], mask[rows] = some_ids, some_mask
        return ids, mask


def shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels [S, S, 3] moved by up to `MAX_SHIFT` in each direction, with the edge pixels repeated."""
    row, column = rng.integers(0, 2 * MAX_SHIFT + 1, 2)
    padded = np.pad(image, ((MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0)), mode="edge")
    return padded[row : row + image.shape[0], column : column + image.shape[1]]


def _names_a_side(item: Example) -> bool:
    """Whether a text of the image says left or right."""
    questions = chain.from_iterable((question.text, *question.answers) for question in item.questions)
    return any(map(_SIDE.search, chain(item.captions, questions)))


def _draw(options: list, rng: np.random.Generator) -> int:
    """A random index; 0 if there are no options."""
    return int(rng.integers(len(options))) if options else 0
