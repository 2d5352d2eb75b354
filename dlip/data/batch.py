"""What datasets yield (`Example`) and what models take (`Batch`)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from dlip.data.transforms import resize_square


@dataclass
class Question:
    """A question about one image."""

    text: str
    answers: list[str]
    """The answer of every annotator."""
    type: str = "other"


@dataclass
class Example:
    """One image with its captions and questions."""

    image: Image.Image | np.ndarray | None
    """An image of any mode, or its pixels as uint8 [H, W, 3]; None where no model needs it."""
    image_id: int | None = None
    """Equal for equal images, so that another caption of an image is never taken for a negative. A list numbers those
    that have none."""
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    tags: np.ndarray | None = None
    """float32 [C, K]: 1 for each tag of each cell of a square grid; None if the dataset has no tags."""
    writers: dict[str, str] = field(default_factory=dict)
    """Caption -> name of the model that wrote it; others are human."""

    @property
    def fields(self) -> frozenset[str]:
        """Which of "captions", "questions" and "tags" it has."""
        has = {"captions": self.captions, "questions": self.questions, "tags": self.tags is not None}
        return frozenset(noun for noun, value in has.items() if value)

    def texts(self) -> Iterator[str]:
        """Its captions, questions and answers."""
        yield from self.captions
        for question in self.questions:
            yield from (question.text, *question.answers)


@dataclass
class Batch:
    """Tensors of B images and N questions about them."""

    images: torch.Tensor
    """uint8 [B, 3, H, W]; each model resizes and normalizes for itself. [B, 0] if no model needs them."""
    image_id: torch.Tensor
    """int64 [B]"""
    ids: torch.Tensor
    """int64 [B, T]: one caption per image, [CLS] ... [SEP], padded to the longest."""
    mask: torch.Tensor
    """bool [B, T]: true for tokens, false for padding."""
    question_ids: torch.Tensor | None = None
    """int64 [N, Q]; None, as are answers, for a model that reads captions alone."""
    question_mask: torch.Tensor | None = None
    answer_ids: torch.Tensor | None = None
    """int64 [N, A]: one answer per question, [DEC] ... [SEP]."""
    answer_mask: torch.Tensor | None = None
    tags: torch.Tensor | None = None
    """float32 [B, C, K]"""
    question_rows: torch.Tensor | None = None
    """int64 [N]: row of the image of each question; None means N = B, one per image."""
    caption_index: torch.Tensor | None = None
    """int64 [B]: which of its captions each image comes with; 0 if it has none."""
    index: torch.Tensor | None = None
    """int64 [B]: index of each image in the dataset; set by `train_loader`."""
    views: torch.Tensor | None = None
    """int64 [B]: which augmented view of each image this is, with `Collate.views`."""
    features: torch.Tensor | None = None
    """float32 [B, P', C']: what the frozen stages of the image backbone make of the images, read in their place."""
    captions: list[str | None] | None = None
    """The captions as text, None for an image without one, for models of another vocabulary than that of `ids`."""
    vocabulary: str | None = None
    """Of `ids` (`Tokenizer.vocabulary`); None for that of any model."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captioned(self) -> torch.Tensor:
        """bool [B]: which images have a caption; the other rows hold a first token and padding."""
        return self.mask[:, 1:].any(1)

    @property
    def caption_mask(self) -> torch.Tensor:
        """bool [B, T]: true for the tokens of captions, false for padding and for images without a caption."""
        return self.mask & self.captioned[:, None]

    def to(self, device: torch.device | str) -> "Batch":
        """This batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """This batch in pinned memory, as `DataLoader` wants it for a GPU."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})

    def tokenized_by(self, tokenizer, max_text: int) -> "Batch":
        """This batch with the ids and mask of another tokenizer; it must carry `captions`."""
        ids, mask = tokenizer.encode([caption or "" for caption in self.captions], max_length=max_text)
        mask[[caption is None for caption in self.captions], 1:] = False
        ids, mask = ids.to(self.image_id.device), mask.to(self.image_id.device)
        return replace(self, ids=ids, mask=mask, vocabulary=tokenizer.vocabulary)


def squares(images: Iterable[Image.Image | np.ndarray], size: int) -> torch.Tensor:
    """Images as `resize_square` makes them, uint8 [B, 3, size, size]."""
    pixels = np.stack([resize_square(image, size) for image in images])  # [B, size, size, 3]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
