"""The base of the loss terms, their registry, and means that several terms share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.models.features import Features, Want
from dlip.models.med import Med
from dlip.models.protocol import Model

if TYPE_CHECKING:
    from dlip.training.config import TrainConfig

ALL_PARTS = frozenset({"image", "text", "others"})
"""Parts of a model that a term trains; `image` and `text` may be frozen."""


@dataclass(frozen=True)
class Setup:
    """What a term may ask for when it is made."""

    student: Med
    teacher: Model | None
    config: "TrainConfig"
    tags: int = 0
    """Number of tags that an image may have."""
    vocabulary: str | None = None
    """Of the student's tokenizer."""


@dataclass(frozen=True)
class At:
    """Where a term is computed: the features of a batch, in an epoch that may be a fraction."""

    student: Features
    teacher: Features | None
    batch: Batch
    model: Med
    epoch: float


class Term(nn.Module):
    """A loss: a scalar in fp32, a mean over the batch of all processes; 0 for a student equal to its teacher.

    A subclass has `forward(at: At)`, the unweighted loss. Projections, heads and queues are its submodules, which the
    exported student does not have.
    """

    name: str
    group: str | None
    needs = "captions"
    """Of the data: images, captions, questions or tags."""
    distills = False
    """Compares with a teacher."""
    by_token = False
    """Compares teacher and student token by token: one tokenizer for both."""
    trains: frozenset[str] = ALL_PARTS
    """Parts that it trains; with all of them frozen it would train nothing."""
    averages_over = "captions"
    """What it is a mean over, of `dlip.training.optimizer.counts`; so accumulated micro-batches equal one batch."""
    ability: str | None = None
    """Whose logits it reads and whose head it trains, of `dlip.models.features.ABILITIES`."""
    source: str | None = None
    """Whose hidden states or maps it compares, of `dlip.models.tasks.SOURCES`."""

    def __init__(self, setup: Setup):
        super().__init__()

    @classmethod
    def owner(cls, teacher: Model) -> Model:
        """The model of a teacher that it compares with. Raises MissingAbility where no model was trained for it."""
        if cls.source:
            return teacher.model_for_states(cls.source)
        return teacher.model_for(cls.ability) if cls.ability else teacher

    def wants(self, side: str) -> Want:
        """What "student" or "teacher" has to compute."""
        return Want(frozenset({self.ability}) if self.ability else frozenset())

    def after_step(self, model: Med) -> None:
        """Update what follows the student, as momentum encoders do."""

    def after_skipped_step(self) -> None:
        """Drop what a skipped step has left."""


TERMS: dict[str, type[Term]] = {}
"""Every term that a loss may have, by name."""


def register(name: str, group: str | None = None):
    """Make a class a loss term; `group` is a name for several. A registered name is replaced, as in a notebook's cell
    that runs again."""

    def add(cls: type[Term]) -> type[Term]:
        cls.name, cls.group = name, group
        TERMS[name] = cls
        return cls

    return add


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log softmax(logits)[label], mean over the labels that are not -100, of the batch of all processes.

    logits: [..., K]; labels: [...]; smoothing: label smoothing, 0 to 1.
    """
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    summed = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return distributed.global_mean(summed, (labels >= 0).sum())


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values [N, T] where mask, bool [N, T], is true, over the batch of all processes; 0 if it never is.

    Without a mask, the mean of all values of this process (each process has as many).
    """
    if mask is None:
        return values.sum() / max(1, values.numel())
    return distributed.global_mean((values * mask).sum(), mask.sum())
