"""The student with all that is trained beside it: a batch in, named losses out."""

import re
from collections.abc import Collection
from dataclasses import replace
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.losses.term import TERMS, At, Setup, Term
from dlip.models.features import Want
from dlip.models.token_ids import pad_to_longest
from dlip.training.caches.features import FeatureCache
from dlip.training.config import TrainConfig
from dlip.training.teacher import Teacher
from dlip.vlm import VLM

FROZEN = {"image": "vision_", "text": "text_(encoder|proj)(?!.*crossattention)"}
"""Part that may be frozen -> pattern of its weights' names. A tied decoder shares those of text."""


def make_terms(setup: Setup, distilling: bool | None = None) -> dict[str, Term]:
    """The weighted terms by name; `distilling`: those with or without a teacher alone."""
    weights = setup.config.weights
    return {
        name: term(setup)
        for name, term in TERMS.items()
        if weights.get(name) and distilling in (None, term.distills) and (setup.teacher or not term.distills)
    }


class Learner(nn.Module):
    """The student and the terms of its loss. Only the student is kept after training.

    tags: number of tags an image may have. Raises UserError where a term does not fit student and teacher.
    """

    def __init__(self, student: VLM, teacher: VLM | None, config: TrainConfig, tags: int = 0):
        super().__init__()
        self.config, self.med = config, student.med.requires_grad_(True)  # it may have been a teacher
        if backbone := self.med.vision_model.embeddings.backbone:
            backbone.requires_grad_(config.backbone_lr > 0)
            if config.backbone_stages:
                backbone.train_last(config.backbone_stages)
        for name, parameter in self.med.named_parameters():
            if any(re.match(FROZEN[part], name) for part in config.freeze):
                parameter.requires_grad_(False)
        self.feature_cache: FeatureCache | None = None
        vocabulary = student.tokenizer and student.tokenizer.vocabulary
        terms = make_terms(Setup(self.med, teacher and teacher.med, config, tags, vocabulary))
        self.terms = nn.ModuleDict({name.replace(".", "_"): term for name, term in terms.items()})

    def active(self, names: Collection[str]) -> list[Term]:
        """The terms among `names`, those without a teacher first."""
        terms = (term for term in self.terms.values() if term.name in names)
        return sorted(terms, key=lambda term: term.distills)

    def want(self, side: str, names: Collection[str]) -> Want:
        """What "student" or "teacher" has to compute for the terms among `names`."""
        terms = [term for term in self.active(names) if side == "student" or term.distills]
        return reduce(or_, (term.wants(side) for term in terms), Want())

    @distributed.global_batch()
    def forward(self, batch: Batch, teacher: Teacher | None, step: int, epoch: float) -> dict[str, Tensor]:
        """Unweighted loss by term, of the terms that are active at `step`. `epoch` may be a fraction.

        With several processes `batch` is this one's part, and each loss is scaled so that the mean over processes is
        the loss of the whole batch.
        """
        names = self.config.active(step)
        if distributed.batch_world_size() > 1:
            batch = pad_to_longest(batch, self.med.config.pad_id)
        own = replace(batch, features=self.feature_cache(batch)) if self.feature_cache else batch
        student, taught = self.med(own, self.want("student", names)), None
        if any(term.distills for term in self.active(names)):
            taught = teacher(batch, self.want("teacher", names), student.pairs)
        at = At(student, taught, own, self.med, epoch)
        return {term.name: term(at) for term in self.active(names)}

    def after_step(self) -> None:
        """Clamp the temperature to BLIP's bounds and let the terms follow the student."""
        with torch.no_grad():
            self.med.temp.clamp_(0.001, 0.5)
        for term in self.terms.values():
            term.after_step(self.med)

    def after_skipped_step(self) -> None:
        """Let the terms drop what a skipped step has left."""
        for term in self.terms.values():
            term.after_skipped_step()
