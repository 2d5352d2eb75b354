"""What data sets yield (`Item`) and what models take (`Batch`)."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from PIL import Image


@dataclass
class Question:
    """A question about one picture."""

    text: str
    answers: list[str]
    """Every annotator's answer; one where there was only one annotator."""
    type: str = "other"


@dataclass
class Item:
    """One picture with all that is said and asked of it."""

    image: Image.Image | np.ndarray
    """RGB picture, or its pixels as uint8 [H, W, 3]."""
    image_id: int
    """The same for the same picture, so that its other captions are never taken for negatives."""
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    tags: np.ndarray | None = None
    """float32 [K]: 1 for each kind of thing that the picture shows, where the data say so."""


@dataclass
class Batch:
    """Tensors of B pictures and N questions about them.

    Captions or questions are None where there are none; in training there are always some, if only empty ones.
    """

    images: torch.Tensor
    """uint8 [B, 3, H, W]; each model resizes and normalises for itself (`Med.normalize`)."""
    image_id: torch.Tensor
    """int64 [B]"""
    ids: torch.Tensor | None = None
    """int64 [B, T]: one caption a picture, [CLS] ... [SEP], padded to the longest."""
    mask: torch.Tensor | None = None
    """bool [B, T]: true where a token is."""
    question_ids: torch.Tensor | None = None
    """int64 [N, Q]"""
    question_mask: torch.Tensor | None = None
    answer_ids: torch.Tensor | None = None
    """int64 [N, A]: an answer to each question, [DEC] ... [SEP]."""
    answer_mask: torch.Tensor | None = None
    tags: torch.Tensor | None = None
    """float32 [B, K]"""
    question_rows: torch.Tensor | None = None
    """int64 [N]: the row of the picture that each question is about; without it N is B."""
    caption_index: torch.Tensor | None = None
    """int64 [B]: which of its captions each picture shows; 0 where it has none."""
    rows: torch.Tensor | None = None
    """int64 [B]: each picture's place in the data set, where it was read from one in training."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captioned(self) -> torch.Tensor:
        """bool [B]: which pictures have a caption; the rows of the others hold a first token and pads."""
        return self.mask[:, 1:].any(1)

    @property
    def answered(self) -> torch.Tensor:
        """bool [N]: which questions have an answer."""
        return self.answer_mask[:, 1:].any(1)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: t.to(device, non_blocking=True) for k, t in tensors.items() if t is not None})
