"""The teacher's own objectives: ITC, ITM, LM (and LM of answers). Each is a named term of the loss.

Source: Li et al., BLIP (arXiv 2201.12086), section 3.2; the momentum encoders, queue and soft labels are ALBEF's
(arXiv 2107.07651), sections 3.2 and 3.3.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.data.batch import Batch
from dlip.features import Features
from dlip.model import Med


def itc_targets(image_id: Tensor, queue_id: Tensor) -> Tensor:
    """[B], [Q] -> [B, Q]: equal weight on every entry of the same picture, rows adding up to 1."""
    same = (image_id[:, None] == queue_id[None]).float()
    return same / same.sum(1, keepdim=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_j targets_ij log softmax(logits)_ij, mean over rows."""
    return -(targets * logits.float().log_softmax(1)).sum(1).mean()


def itc(features: Features) -> Tensor:
    """Image-text contrast within the batch: cross-entropy of both directions of logits [B, B], mean of the two."""
    targets = itc_targets(features.image_id, features.image_id)
    logits = features.logits["itc"]
    return (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, targets)) / 2


def itm(features: Features) -> Tensor:
    """Cross-entropy of "match" over the matching pairs and the mined hard negatives, logits [N, 2]."""
    logits = features.logits["itm"]
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(features.image_id)] = 1
    return F.cross_entropy(logits.float(), labels)


def next_word(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of the next word with label smoothing, mean over the words to learn. logits [N, T, V]."""
    if not (labels >= 0).any():
        return logits.sum() * 0
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing)


def lm(features: Features, smoothing: float = 0.1) -> Tensor:
    """Next word of the caption, given its picture."""
    return next_word(features.logits["lm"], features.labels["lm"], smoothing)


def vqa(features: Features, smoothing: float = 0.1) -> Tensor:
    """Next word of the answer, given the question read with its picture (BLIP, section 5.3: answer generation)."""
    return next_word(features.logits["vqa"], features.labels["vqa"], smoothing)


def tags(logits: Tensor, targets: Tensor) -> Tensor:
    """Which kinds of things a picture shows: binary cross-entropy, mean over logits and targets [B, K].

    What pre-training on a labelled set such as ImageNet gives the paper's image encoders.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


class MomentumITC(nn.Module):
    """ITC against moving averages of the encoders, a queue of their latest vectors, and soft labels.

    queue: vectors kept (0: the batch alone). momentum: 0.995 in BLIP. alpha: weight of the soft labels (0: hard ones);
    BLIP's 0.4, reached linearly over the first epoch.
    """

    def __init__(self, med: Med, queue: int = 0, momentum: float = 0.995, alpha: float = 0.4):
        super().__init__()
        self.size, self.momentum, self.alpha = queue, momentum, alpha
        names = ("vision_model", "text_encoder", "vision_proj", "text_proj")
        self.encoders = nn.ModuleDict({name: copy.deepcopy(getattr(med, name)) for name in names})
        self.encoders.requires_grad_(False)
        width = med.config.embed_dim
        self.register_buffer("images", F.normalize(torch.randn(queue, width), dim=-1))
        self.register_buffer("texts", F.normalize(torch.randn(queue, width), dim=-1))
        self.register_buffer("ids", torch.full((queue,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, med: Med) -> None:
        """One step of the moving average: m <- momentum m + (1 - momentum) student."""
        for name, own in self.encoders.items():
            torch._foreach_lerp_(list(own.parameters()), list(getattr(med, name).parameters()), 1 - self.momentum)

    @torch.no_grad()
    def embed(self, med: Med, batch: Batch) -> tuple[Tensor, Tensor]:
        e = self.encoders
        images = e["vision_proj"](e["vision_model"](med.normalise(batch.images))[:, 0])
        texts = e["text_proj"](e["text_encoder"](batch.ids, batch.mask)[:, 0])
        return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)  # [B, E] each

    def forward(self, features: Features, med: Med, batch: Batch, progress: float = 1.0) -> Tensor:
        """progress: share of the soft labels' ramp that is done, 0 to 1."""
        self.update(med)
        images, texts = self.embed(med, batch)
        all_images, all_texts = torch.cat([images, self.images]), torch.cat([texts, self.texts])
        targets = itc_targets(features.image_id, torch.cat([features.image_id, self.ids]))  # [B, B+queue]
        loss, alpha = 0.0, self.alpha * min(1.0, progress)
        for own, mine, others in ((features.image_embed, images, all_texts), (features.text_embed, texts, all_images)):
            soft = (mine @ others.T / features.temp).softmax(1).detach()
            loss = loss + soft_cross_entropy(own @ others.T / features.temp, alpha * soft + (1 - alpha) * targets)
        self._push(images, texts, features.image_id)
        return loss / 2

    def _push(self, images: Tensor, texts: Tensor, image_id: Tensor) -> None:
        if self.size:
            n = min(len(images), self.size)
            at = (self.place + torch.arange(n, device=images.device)) % self.size
            self.images[at], self.texts[at], self.ids[at] = images[:n], texts[:n], image_id[:n]
            self.place.copy_((self.place + n) % self.size)
