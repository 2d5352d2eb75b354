"""Image-text contrastive loss: within the batch, or against momentum encoders, a queue and soft labels."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.losses.term import At, Setup, Term, register
from dlip.models.features import Features, cosines
from dlip.models.med import Med

NO_ID = torch.iinfo(torch.int64).min
"""In place of an image's id where the queue is still empty."""


@register("itc", group="vlp")
class Contrastive(Term):
    """Image-text contrast: cross-entropy of which text belongs to an image, and which image to a text.

    With `momentum` in the configuration, `MomentumITC`. Source: BLIP (arXiv 2201.12086), section 3.2.
    """

    trains = frozenset({"image", "text"})
    ability = "itc"

    def __init__(self, setup: Setup):
        super().__init__(setup)
        config, self.momentum = setup.config, None
        if config.momentum:
            self.momentum = MomentumITC(setup.student, config.queue, config.momentum, config.alpha)

    def forward(self, at: At) -> Tensor:
        return self.momentum(at.student, at.model, at.batch, at.epoch) if self.momentum else itc(at.student)

    def after_step(self, model: Med) -> None:
        if self.momentum:
            self.momentum.update(model)

    def after_skipped_step(self) -> None:
        if self.momentum:
            self.momentum.waiting.clear()


def itc_targets(image_id: Tensor) -> Tensor:
    """Hard ITC labels [C, C] of image ids [C]: equal weight on all captions of the same image, rows sum to 1."""
    same = (image_id[:, None] == image_id[None]).float()
    return same / same.sum(1, keepdim=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_j y_ij log softmax(logits)_ij, mean over rows i of logits and targets y [C, C]; 0 without rows."""
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(1, len(logits))


def itc(features: Features) -> Tensor:
    """Image-text contrastive loss within the batch, mean of image-to-text and text-to-image cross-entropy.

    logits [C, C] = cos(image_i, text_j) / temperature, for the C images with a caption of all processes; an image's
    other captions are positives too (`itc_targets`). Source: BLIP, section 3.2; ALBEF, eq. 1 and 2.
    """
    targets, logits = itc_targets(features.contrasted(features.image_id)), features.logits["itc"]
    return (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, targets)) / 2


class MomentumITC(nn.Module):
    """ITC against momentum encoders, a queue of their latest vectors, and soft labels.

    queue: number of vectors kept, split evenly over processes (0: only the batch). momentum: decay m of the encoders'
    moving averages (BLIP: 0.995). alpha: weight of the soft labels (BLIP: 0.4; 0: hard labels only).

    Call `update` after each optimizer step: it moves the averages and puts the step's vectors into the queue.
    Source: ALBEF, sections 3.2 and 3.3; BLIP, section 3.2.
    """

    def __init__(self, med: Med, queue: int = 0, momentum: float = 0.995, alpha: float = 0.4):
        super().__init__()
        self.size, self.momentum, self.alpha = queue // distributed.world_size(), momentum, alpha
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        names = ("vision_model", "text_encoder", "vision_proj", "text_proj")
        self.encoders = nn.ModuleDict({name: copy.deepcopy(getattr(med, name)) for name in names})
        self.encoders.requires_grad_(False)
        width = med.config.embed_dim
        self.register_buffer("images", F.normalize(torch.randn(self.size, width), dim=-1))
        self.register_buffer("texts", F.normalize(torch.randn(self.size, width), dim=-1))
        self.register_buffer("ids", torch.full((self.size,), NO_ID))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, med: Med) -> None:
        """Queue the vectors since the last update; encoders <- m encoders + (1 - m) student."""
        for images, texts, ids in self.waiting if self.size else ():
            n = min(len(images), self.size)
            rows = (self.place + torch.arange(n, device=images.device)) % self.size
            self.images[rows], self.texts[rows], self.ids[rows] = images[:n], texts[:n], ids[:n]
            self.place.copy_((self.place + n) % self.size)
        self.waiting.clear()
        average = get_ema_multi_avg_fn(self.momentum)
        for name, encoder in self.encoders.items():
            average(list(encoder.parameters()), list(getattr(med, name).parameters()), None)

    @torch.no_grad()
    def embed(self, med: Med, batch: Batch) -> tuple[Tensor, Tensor]:
        """L2-normalized fp32 vectors [B, E] of images and captions by the momentum encoders."""
        e = self.encoders
        images = e["vision_proj"](e["vision_model"](med.pixels_of(batch))[:, 0])
        texts = e["text_proj"](e["text_encoder"](batch.ids, batch.mask)[:, 0])
        return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)

    def forward(self, features: Features, med: Med, batch: Batch, progress: float = 1.0) -> Tensor:
        """ITC loss -sum_j y_ij log softmax(cos(student_i, momentum_j) / temperature)_ij, mean of both directions.

        y = a softmax(cos(momentum_i, momentum_j) / temperature) + (1 - a) hard labels, where a rises from 0 to `alpha`
        with `progress` from 0 to 1 (here in epochs: over the first epoch). i: the C captioned images (or captions) of
        all processes; j: the momentum vectors held by this process, of its part of the batch and of the queue. Sums
        over j run over all processes.
        """
        images, texts = self.embed(med, batch)
        captioned, ids = features.captioned, features.image_id[features.captioned]
        same = (features.contrasted(features.image_id)[:, None] == torch.cat([ids, self.ids])).float()  # [C, held]
        hard, alpha = same / distributed.all_sum(same.sum(1, keepdim=True)), self.alpha * min(1.0, progress)
        loss = 0.0
        for student, momentum, others, queue in (
            (features.image_embed, images, texts, self.texts),
            (features.text_embed, texts, images, self.images),
        ):
            held = torch.cat([others[captioned], queue])
            student_logits, momentum_logits = (
                cosines(features.contrasted(x), held) / features.temp for x in (student, momentum)
            )  # [C, held]
            targets = alpha * global_log_softmax(momentum_logits).exp().detach() + (1 - alpha) * hard
            loss = loss - (targets * global_log_softmax(student_logits)).sum()
        self.waiting.append((images[captioned], texts[captioned], ids))
        return loss * distributed.batch_world_size() / (2 * max(1, len(hard)))


def global_log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax of logits [C, K] over the columns of all processes, each of which holds K of its own."""
    logits = logits.float()
    if distributed.batch_world_size() == 1:
        return logits.log_softmax(1)
    return logits - distributed.all_gather(logits.logsumexp(1)[None]).logsumexp(0)[:, None]
