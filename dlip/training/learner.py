"""The student with all that is trained beside it: a batch in, named losses out."""

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.models.features import ABILITIES, Want
from dlip.models.token_ids import pad_to_longest
from dlip.training import objectives
from dlip.training.caches.features import FeatureCache
from dlip.training.config import TrainConfig
from dlip.training.distillation import Distiller, Teacher
from dlip.vlm import VLM

FROZEN = {"image": "vision_", "text": "text_(encoder|proj)(?!.*crossattention)"}
"""Part that may be frozen -> pattern of its weights' names. A tied decoder shares those of text."""


class Learner(nn.Module):
    """The student, its momentum encoders (for ITC), its projections (for hr.*) and its tag head (for tags).

    Only the student is kept after training. tags: number of tags an image may have.
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
        self.momentum = None
        if config.momentum:
            self.momentum = objectives.MomentumITC(self.med, config.queue, config.momentum, config.alpha)
        self.distiller = None
        if teacher is not None:
            self.distiller = Distiller.between(student, teacher, config)
        self.tag_head = nn.Linear(student.med.config.image_width, tags) if config.weights.get("tags") else None

    def want(self, terms: frozenset[str]) -> Want:
        """What the student has to compute for these terms."""
        want = Want(terms & set(ABILITIES), {("image", "states"): (-1,)} if "tags" in terms else {})
        return want | self.distiller.want("student", terms) if self.distiller else want

    @distributed.global_batch()
    def forward(self, batch: Batch, teacher: Teacher | None, step: int, epoch: float) -> dict[str, Tensor]:
        """Unweighted loss by term, of the terms that are active at `step`. `epoch` may be a fraction.

        With several processes `batch` is this one's part, and each loss is scaled so that the mean over processes is
        the loss of the whole batch.
        """
        terms, smoothing = self.config.active(step), self.config.label_smoothing
        if distributed.batch_world_size() > 1:
            batch = pad_to_longest(batch, self.med.config.pad_id)
        own = replace(batch, features=self.feature_cache(batch)) if self.feature_cache else batch
        features = self.med(own, self.want(terms))
        losses = {}
        if "itc" in terms:
            losses["itc"] = self.momentum(features, self.med, own, epoch) if self.momentum else objectives.itc(features)
        if "itm" in terms:
            losses["itm"] = objectives.itm(features)
        if "lm" in terms:
            losses["lm"] = objectives.lm(features, smoothing)
        if "vqa" in terms:
            losses["vqa"] = objectives.vqa(features, smoothing)
        if "tags" in terms:
            losses["tags"] = objectives.tags(self.tag_head, features.states("image"), batch.tags)
        if self.distiller is not None and self.distiller.active(terms):
            teacher_features = teacher(batch, self.distiller.want("teacher", terms), features.pairs)
            losses |= self.distiller(features, teacher_features, terms)
        return losses

    def after_step(self) -> None:
        """Clamp the temperature to BLIP's bounds and update the momentum encoders and their queue."""
        with torch.no_grad():
            self.med.temp.clamp_(0.001, 0.5)
        if self.momentum is not None:
            self.momentum.update(self.med)

    def after_skipped_step(self) -> None:
        """Drop the skipped step's vectors, which must not enter the queue."""
        if self.momentum is not None:
            self.momentum.waiting.clear()
