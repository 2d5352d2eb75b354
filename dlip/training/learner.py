"""What is trained together: the student, the projections of its distillation, its momentum encoders."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.models.features import ABILITIES, Want
from dlip.training import objectives
from dlip.training.config import TrainConfig
from dlip.training.distillation import Distiller, Teacher
from dlip.vlm import VLM


class Learner(nn.Module):
    """All that is trained together, student, projections, momentum encoders: a batch in, named losses out.

    kinds: how many kinds of things the data's tags tell apart; their head is trained with the student and dropped.
    """

    def __init__(self, student: VLM, teacher: VLM | None, config: TrainConfig, kinds: int = 0):
        super().__init__()
        self.config, self.med = config, student.med
        self.momentum = None
        if config.momentum:
            self.momentum = objectives.MomentumITC(self.med, config.queue, config.momentum, config.alpha)
        self.distiller = None
        if teacher is not None:
            self.distiller = Distiller(
                student.med.config,
                teacher.med.config,
                config.weights,
                config.layers,
                config.learn_teacher_projection,
                config.center_states,
            )
        tagged = config.weights.get("tags")
        self.tag_head = nn.Linear(student.med.config.image_width, kinds) if tagged else None

    def want(self, terms: frozenset[str]) -> Want:
        """What `terms` read of the student."""
        want = Want(terms & set(ABILITIES), {("image", "states"): (-1,)} if "tags" in terms else {})
        return want | self.distiller.want("student", terms) if self.distiller else want

    @distributed.global_batch()
    def forward(self, batch: Batch, teacher: Teacher | None, step: int, epoch: float) -> dict[str, Tensor]:
        """Term -> loss, unweighted, of this process's part of the batch, of those that have joined by `step`.

        `epoch` counts epochs with their fraction.
        """
        terms = self.config.active(step)
        if distributed.batch_world_size() > 1:
            batch = levelled(batch, self.med.config.pad_id)
        features = self.med(batch, self.want(terms))
        losses = {}
        for term in (task for task in ABILITIES if task in terms):
            if term == "itc" and self.momentum is not None:
                losses[term] = self.momentum(features, self.med, batch, epoch)
            elif term in ("lm", "vqa"):
                losses[term] = getattr(objectives, term)(features, self.config.label_smoothing)
            else:
                losses[term] = getattr(objectives, term)(features)
        if "tags" in terms:
            losses["tags"] = objectives.tags(self.tag_head(features.states("image")[:, 0]), batch.tags)
        if self.distiller is not None and self.distiller.active(terms):
            known = teacher(batch, self.distiller.want("teacher", terms), features.pairs)
            losses |= self.distiller(features, known, terms)
        return losses

    def moved(self) -> None:
        """After each change of the weights: the temperature within BLIP's bounds, the momentum encoders behind."""
        with torch.no_grad():
            self.med.temp.clamp_(0.001, 0.5)
        if self.momentum is not None:
            self.momentum.step(self.med)

    def left_out(self) -> None:
        """After a step whose change was left out: its vectors do not come into the queue."""
        if self.momentum is not None:
            self.momentum.waiting.clear()


def levelled(batch: Batch, pad_id: int) -> Batch:
    """Captions padded to the longest of all processes, so that they can be gathered."""
    length = torch.tensor([batch.ids.shape[1]], device=batch.ids.device)
    more = (0, int(distributed.all_gather(length).max() - length))
    return replace(batch, ids=F.pad(batch.ids, more, value=pad_id), mask=F.pad(batch.mask, more))
